/**
 * llama.cpp in the same run, through node-llama-cpp. It is not among our packages: whoever wants the
 * comparison installs it somewhere else. It runs in a process of its own, since its threads spin.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { CommandError } from "../cli/errors.js";
import type { RoundSpeeds, SpeedTask } from "./speed-task.js";

export const howToInstallPeer =
  "install it with NODE_LLAMA_CPP_SKIP_DOWNLOAD=true npm install --prefix DIR node-llama-cpp@3.22.1 and give --peer DIR";

export interface PeerRun {
  /** Path of node-llama-cpp's entry. */
  library: string;
  file: string;
  threads: number;
  task: SpeedTask;
  round: number;
}

/** What a round shows of an engine. */
export interface PeerFigures extends RoundSpeeds {
  /** From nothing to ready. */
  loadSeconds: number;
  /** Resident at the end, of all processes that compute: private memory, and pages of files. */
  anonymousBytes: number;
  mappedBytes: number;
  /** The most that was resident at a time. */
  peakBytes: number;
}

/** @throws CommandError when node-llama-cpp is not installed under the directory. */
export function findPeer(directory: string): string {
  const library = resolve(directory, "node_modules/node-llama-cpp/dist/index.js");
  if (existsSync(library)) return library;
  throw new CommandError(`no node-llama-cpp in ${join(directory, "node_modules")}: ${howToInstallPeer}`);
}

export async function runPeer(run: PeerRun): Promise<PeerFigures> {
  const script = fileURLToPath(new URL("./peer-process.js", import.meta.url));
  const running = promisify(execFile)(process.execPath, [script, JSON.stringify(run)]);
  const kill = () => running.child.kill("SIGKILL");
  process.once("exit", kill);
  try {
    return JSON.parse((await running).stdout.trim().split("\n").at(-1)!) as PeerFigures;
  } finally {
    process.off("exit", kill);
  }
}
