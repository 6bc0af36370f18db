/** `glm-relay up` with everything that it supervises, for tests that end its parts. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { packageRoot } from "../../common/package.js";
import { TestProcess } from "./cluster.js";

const main = join(packageRoot, "dist/cli/main.js");

export class TestUp {
  readonly process: TestProcess;
  readonly data: string;
  readonly #keepData: boolean;
  url = "";

  private constructor(args: string[], data?: string) {
    this.data = data ?? mkdtempSync(join(tmpdir(), "glm-relay-up-"));
    this.#keepData = data !== undefined;
    const all = [main, "up", "--port", "0", "--data", this.data, ...args];
    this.process = new TestProcess("up", process.execPath, all);
  }

  /**
   * Resolves when it is ready.
   * @param data Its data directory, which stays; default: one of its own.
   */
  static async start(args: string[], data?: string): Promise<TestUp> {
    const up = new TestUp(args, data);
    up.url = (await up.process.line(/^ready (http:\/\/127\.0\.0\.1:\d+)$/m, 60_000))[1]!;
    return up;
  }

  /** The words with which the child whose command line names this was started; its process id first. */
  child(name: string): { pid: number; command: string[] } | null {
    const { pid: parent } = this.process;
    const children = readFileSync(`/proc/${parent}/task/${parent}/children`, "utf8").trim();
    for (const pid of children.split(" ").filter(Boolean).map(Number)) {
      const command = commandOf(pid);
      // Redis writes its address behind its own name.
      if (command.some((word) => new RegExp(`(^|/)${name}( |$)`).test(word))) return { pid, command };
    }
    return null;
  }

  kill(name: string, signal: NodeJS.Signals = "SIGKILL"): void {
    const child = this.child(name);
    if (child === null) throw new Error(`up has no child ${name}`);
    process.kill(child.pid, signal);
  }

  log(name: string): string {
    return readFileSync(join(this.data, "logs", `${name}.log`), "utf8");
  }

  async stop(): Promise<void> {
    this.process.kill("SIGCONT");
    this.process.kill("SIGTERM");
    await this.process.exited;
    if (!this.#keepData) rmSync(this.data, { recursive: true, force: true });
  }
}

/** Of a process that has ended meanwhile: nothing. */
function commandOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
  } catch {
    return [];
  }
}
