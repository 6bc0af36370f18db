/** Which GPU each worker of `up` computes on, and how much of its memory it offers. */
import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { InvalidArgumentError } from "commander";
import { packageRoot } from "../common/package.js";
import type { GpuList, ListedGpu } from "../worker/list-gpus.js";
import { CommandError } from "./errors.js";
import { gpuMemoryShare } from "./options.js";

/** A driver that has been asleep takes seconds to answer. */
const listLimitMs = 60_000;
/** Each process that computes on a GPU takes some of its memory for CUDA's own, some 500 MB on an H100. */
const contextBytes = 512 * 2 ** 20;

/** Of one worker. */
export interface WorkerDevice {
  /** As `worker --device` takes it. */
  device: string;
  /** Its GPU's, for it alone. */
  memoryBytes: number;
}

/** What the workers of `up` compute on; "cuda": all GPUs that are there. */
export function devices(text: string): string {
  if (/^(auto|cpu|cuda|cuda:\d{1,3})$/.test(text)) return text;
  throw new InvalidArgumentError("Expected auto, cpu, cuda or cuda:N, for example cuda:0.");
}

/**
 * The GPUs that are there for a value of devices(); none for cpu, and for auto where there is none.
 * @throws CommandError when there is no such GPU, no CUDA library or no driver.
 */
export async function localGpus(wanted: string): Promise<ListedGpu[]> {
  if (wanted === "cpu") return [];
  const [, index] = wanted.split(":");
  const list = await listGpus(index === undefined ? [] : [index]);
  if ("gpus" in list) return list.gpus;
  if (wanted === "auto") return [];
  throw refused(wanted, list.missing);
}

async function listGpus(args: string[]): Promise<GpuList> {
  const script = join(packageRoot, "dist/worker/list-gpus.js");
  try {
    const { stdout } = await promisify(execFile)(process.execPath, [script, ...args], {
      timeout: listLimitMs,
    });
    return JSON.parse(stdout) as GpuList;
  } catch (error) {
    return { missing: `GPUs cannot be looked at: ${(error as Error).message.trim()}` };
  }
}

/**
 * Worker i computes on GPU i modulo their number; those of one GPU share what is free on it.
 * @param gpus At least one.
 * @param memoryBytes Of each worker; absent: its share.
 * @throws CommandError for GPUs that compute different bits, and for one that has too little for its workers.
 */
export function assignGpus(
  wanted: string,
  gpus: readonly ListedGpu[],
  workers: number,
  memoryBytes?: number,
): WorkerDevice[] {
  const used = gpus.slice(0, workers);
  const [first] = used;
  const other = used.find(({ computeCapability }) => computeCapability !== first!.computeCapability);
  if (other !== undefined) {
    throw refused(
      wanted,
      `GPU ${first!.index} has compute capability ${first!.computeCapability}, GPU ${other.index} has ` +
        `${other.computeCapability}, and a pipeline wants one: choose a GPU with cuda:N`,
    );
  }
  return Array.from({ length: workers }, (_, worker) => {
    const at = worker % used.length;
    const { index, freeBytes } = used[at]!;
    const sharing = Math.ceil((workers - at) / used.length);
    const share = Math.floor((gpuMemoryShare * (freeBytes - (sharing - 1) * contextBytes)) / sharing);
    if (memoryBytes === undefined && share <= 0) {
      throw refused(wanted, `GPU ${index} has ${freeBytes} bytes free, too few for ${sharing} workers`);
    }
    return { device: `cuda:${index}`, memoryBytes: memoryBytes ?? share };
  });
}

function refused(wanted: string, why: string): CommandError {
  return new CommandError(`option '--device <device>' value '${wanted}': ${why}`, "invalid_configuration");
}
