/**
 * A program that prints the GPUs of this machine and what is free on them, as JSON (GpuList), and ends: whoever looks
 * at a GPU keeps some hundred MB of its memory, which `up` must not do. One argument: only the GPU with this number.
 */
import { availableGpus, freeGpuBytes } from "../native/index.js";

export interface ListedGpu {
  index: number;
  name: string;
  computeCapability: string;
  freeBytes: number;
}

export type GpuList = { gpus: ListedGpu[] } | { missing: string };

function list(index: number | null): GpuList {
  try {
    const gpus = availableGpus();
    if (index !== null && gpus[index] === undefined) return { missing: `there are ${gpus.length} GPUs here` };
    if (gpus.length === 0) return { missing: "there are 0 GPUs here" };
    const wanted = gpus.filter((gpu) => index === null || gpu.index === index);
    return {
      gpus: wanted.map((gpu) => {
        const { index, name, computeCapability } = gpu;
        return { index, name, computeCapability, freeBytes: freeGpuBytes(gpu) };
      }),
    };
  } catch (error) {
    return { missing: (error as Error).message };
  }
}

const [index] = process.argv.slice(2);
process.stdout.write(JSON.stringify(list(index === undefined ? null : Number(index))));
