/**
 * Programs of others that a benchmark runs. Each leads a process group, which ends with this process however it ends
 * (unless it is killed): a compiler's children, and servers that would wait for ever.
 */
import { type ChildProcess, spawn } from "node:child_process";
import type { Readable } from "node:stream";
import { CommandError } from "../cli/errors.js";

/** What is kept of a program's words, for the message when it fails. */
const keptCharacters = 4_096;
const shownLines = 8;

const running = new Set<OwnedProcess>();
process.once("exit", () => {
  for (const each of running) each.kill();
});

export class OwnedProcess {
  readonly pid: number | undefined;
  readonly stdout: Readable;
  /** Resolves when it has ended and all that it wrote was read; true when it did its work. */
  readonly ended: Promise<boolean>;
  readonly #name: string;
  readonly #child: ChildProcess;
  #said = "";

  constructor(program: string, args: readonly string[]) {
    this.#name = program;
    this.#child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"], detached: true });
    this.pid = this.#child.pid;
    this.stdout = this.#child.stdout!;
    for (const stream of [this.stdout, this.#child.stderr!]) {
      stream.on("data", (text: Buffer) => {
        this.#said = (this.#said + text.toString()).slice(-keptCharacters);
      });
    }
    running.add(this);
    this.ended = new Promise((resolve) => {
      this.#child.once("error", ({ message }) => {
        this.#said += message;
        running.delete(this);
        resolve(false);
      });
      this.#child.once("close", (code) => {
        running.delete(this);
        resolve(code === 0);
      });
    });
  }

  /** Why it failed, with its last words. */
  failure(): CommandError {
    const words = this.#said.trim().split("\n").slice(-shownLines).join("\n");
    return new CommandError(`${this.#name} failed: ${words === "" ? "it said nothing" : words}`);
  }

  /** Ends the whole group at once. */
  kill(): void {
    if (this.pid === undefined || !running.has(this)) return;
    try {
      process.kill(-this.pid, "SIGKILL");
    } catch (error) {
      // It has ended, and its last words are still being read.
      if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
    }
  }
}

/** @throws CommandError when the program is not there or fails. */
export async function runOwned(program: string, args: readonly string[]): Promise<void> {
  const owned = new OwnedProcess(program, args);
  if (!(await owned.ended)) throw owned.failure();
}
