/**
 * llama.cpp's RPC mode, which node-llama-cpp's compiled library lacks: built from the source that the same package
 * carries, so that both are one release. Kept beside the package, for the next run.
 */
import { existsSync, readFileSync } from "node:fs";
import { mkdir, rename, rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join, resolve } from "node:path";
import { CommandError } from "../cli/errors.js";
import { runOwned } from "./owned-process.js";
import { howToInstallPeer } from "./peer.js";
import { note } from "./progress.js";

export interface RpcPrograms {
  /** Computes some of the layers. */
  server: string;
  /** llama.cpp's own measurement of batches: the client of the servers. */
  bench: string;
}

/** Its libraries in the programs, no parts that nobody needs, and all that this machine's processor can do. */
const cmakeOptions = [
  "-DCMAKE_BUILD_TYPE=Release",
  "-DGGML_NATIVE=ON",
  "-DGGML_RPC=ON",
  "-DBUILD_SHARED_LIBS=OFF",
  ...["TESTS", "EXAMPLES", "SERVER", "APP"].map((part) => `-DLLAMA_BUILD_${part}=OFF`),
  "-DLLAMA_OPENSSL=OFF",
];
const targets = ["ggml-rpc-server", "llama-batched-bench"];

/**
 * @param directory Where node-llama-cpp is installed.
 * @throws CommandError when the source, git, cmake or a compiler is missing, or when it does not compile.
 */
export async function buildRpc(directory: string): Promise<RpcPrograms> {
  const { bundle, tag } = findSource(directory);
  await requireProgram("git");
  await requireProgram("cmake");
  const home = resolve(directory, `llama.cpp-${tag}-rpc`);
  const source = join(home, "source");
  const build = join(home, "build");
  note(`building llama.cpp's RPC mode in ${home}; the first time takes minutes`);
  await cloneOnce(bundle, source);
  await runOwned("cmake", ["-S", source, "-B", build, ...cmakeOptions]);
  const jobs = String(availableParallelism());
  await runOwned("cmake", ["--build", build, "--parallel", jobs, "--target", ...targets]);
  const [server, bench] = targets.map((target) => join(build, "bin", target));
  return { server: server!, bench: bench! };
}

/** @throws CommandError naming the file that is missing. */
export function findSource(directory: string): { bundle: string; tag: string } {
  const folder = resolve(directory, "node_modules/node-llama-cpp/llama");
  const bundle = join(folder, "gitRelease.bundle");
  const info = join(folder, "llama.cpp.info.json");
  for (const file of [bundle, info]) {
    if (existsSync(file)) continue;
    throw new CommandError(
      `${file} is missing, expected llama.cpp's source in node-llama-cpp: ${howToInstallPeer}`,
    );
  }
  const { tag } = JSON.parse(readFileSync(info, "utf8")) as { tag: string };
  return { bundle, tag };
}

async function requireProgram(name: string): Promise<void> {
  try {
    await runOwned(name, ["--version"]);
  } catch (error) {
    throw new CommandError(`--rpc needs ${name} to build llama.cpp's RPC mode: ${(error as Error).message}`);
  }
}

/** What was interrupted leaves no folder that looks complete. */
async function cloneOnce(bundle: string, source: string): Promise<void> {
  if (existsSync(source)) return;
  const unfinished = `${source}.unfinished`;
  await rm(unfinished, { recursive: true, force: true });
  await mkdir(unfinished, { recursive: true });
  await runOwned("git", ["clone", "--quiet", bundle, unfinished]);
  await rename(unfinished, source);
}
