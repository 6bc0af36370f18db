/** Programs that run with the libraries of a sanitizer, from the root of the package. */
import { type SpawnSyncReturns, spawnSync } from "node:child_process";
import { packageRoot } from "../../common/package.js";

/** Enough for the reports of a test run in which everything fails. */
const outputBytes = 64 * 1024 * 1024;

export function runProgram(
  command: string,
  args: string[],
  env: Record<string, string> = {},
): SpawnSyncReturns<string> {
  return spawnSync(command, args, {
    cwd: packageRoot,
    encoding: "utf8",
    maxBuffer: outputBytes,
    env: { ...process.env, ...env },
  });
}

/** For a program that is not built with a sanitizer, such as Node: it must load its library before anything else. */
export function preloaded(...libraries: string[]): { LD_PRELOAD: string } {
  const paths = libraries.map((name) => runProgram("g++", [`-print-file-name=${name}`]).stdout.trim());
  return { LD_PRELOAD: paths.join(" ") };
}
