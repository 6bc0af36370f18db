/**
 * What is known of processors by their data sheets. Nominal: no program reaches these figures, and what share of
 * them is reached says the efficiency (assumptions.ts).
 */

const GB = 1e9;
const GiB = 2 ** 30;
const tera = 1e12;

/** What the stages of one machine that compute at the same time divide among them. */
export interface SharedLimits {
  /** Bytes per second of all of them together. */
  bandwidth: number;
  /** Operations per second of all of them together. */
  flops: number;
  /** Cores that compute these stages, and besides them handle messages; null: messages take nothing of theirs. */
  cores: number | null;
}

export interface Device {
  name: string;
  memoryBytes: number;
  /** Of the memory, what weights, KV cache and workspace cannot have: driver, context, code. */
  reservedBytes: number;
  /** Bytes per second that one stage reads. */
  bandwidth: number;
  /** Operations per second of one stage, a multiplication and an addition being two. */
  flops: number;
  /** null: it has its memory and its arithmetic to itself. */
  shared: SharedLimits | null;
  /** The embedding is not in this memory: of it one row per token is read, and the host has room for it. */
  embeddingInHost: boolean;
}

/** Driver and context take 0.3 to 0.5 GiB; the rest is fragments and the buffers of links. */
const gpuReserve = 0.75 * GiB;

function gpu(name: string, memoryGiB: number, bandwidthGB: number, teraflops: number): Device {
  return {
    name,
    memoryBytes: memoryGiB * GiB,
    reservedBytes: gpuReserve,
    bandwidth: bandwidthGB * GB,
    flops: teraflops * tera,
    shared: null,
    embeddingInHost: true,
  };
}

/** Dense FP16 products summed in FP32, without sparsity. */
const gpus = [
  // NVIDIA Turing GPU Architecture (WP-09183-001), appendix A: TU102, 11 GB GDDR6 at 14 Gbit/s.
  gpu("2080ti", 11, 616, 53.8),
  // NVIDIA Ampere GA102 GPU Architecture, table 2: GeForce RTX 3090.
  gpu("3090", 24, 936, 71),
  // NVIDIA Ada GPU Architecture, appendix A: GeForce RTX 4090.
  gpu("4090", 24, 1_008, 165.2),
  // NVIDIA A100 Tensor Core GPU data sheet: 40 GB and 80 GB, SXM.
  gpu("a100-40g", 40, 1_555, 312),
  gpu("a100-80g", 80, 2_039, 312),
  // NVIDIA H100 Tensor Core GPU data sheet: SXM, dense.
  gpu("h100", 80, 3_350, 989),
];

/**
 * One core of a virtual machine with two cores of an AMD EPYC (Zen 3, AVX2), measured: one thread reads 18 GB/s,
 * two together 28; 157 Gop/s of int8 products per core when both compute. Layers rounded to int8 or int4.
 */
const cpu: Device = {
  name: "cpu",
  memoryBytes: 8 * GiB,
  reservedBytes: 100 * 2 ** 20,
  bandwidth: 18 * GB,
  flops: 157e9,
  shared: { bandwidth: 28 * GB, flops: 314e9, cores: 2 },
  embeddingInHost: false,
};

export const devices: ReadonlyMap<string, Device> = new Map(
  [...gpus, cpu].map((device) => [device.name, device]),
);
export const deviceNames = [...devices.keys()];
