/**
 * What a stage holds in a GPU's memory. It repeats what native/cuda allocates, and the float32 rows of
 * native/model/layer_loop.cc; a test holds every figure of this file against the
 * backend's own and what it takes of an emulated GPU. The embedding, Node and what the host computes are in
 * the host's memory, of which nothing is counted here.
 */
import type { PrefixTensors } from "../../checkpoint/index.js";
import type { WeightFormat } from "../../models/quantization.js";
import { type ExpertShape, ffnInputs, type ModelShape, qkvRows } from "../../models/shape.js";
import type { HeldLayer, HeldMatrix } from "./layer-tensors.js";
import type { StageBytes } from "./placement.js";

/** Rows that pass through a layer together, and rows whose logits exist at the same time. */
const rowTile = 512;
const logitTile = 16;
/** Weights lie in blocks of so many output rows and columns, in vectors for the lanes of a warp. */
const blockRows = 8;
const blockColumns = 128;
const vectorBytes = 16;
const warpVectorBytes = 32 * vectorBytes;
const vectorsPerLane = { int4: 1, int8: 2 } as const;
const storedVectors = 4;
/** The FP16 input of a product lies in tiles of rows, and columns of one are read ahead. */
const halfTileRows = 8;
const columnsAhead = 128;
/** Most sums of parts of contexts that are made side by side; fewer are enough for a cache of few tokens. */
export const mostPartialBytes = 36 * 2 ** 20;
/** Of a step's row beside its rotations: five numbers, and a task of attention of its own. */
const stepRowBytes = 5 * 4 + 16;
/** Tables have room for so many rows, also where steps have fewer. */
const leastStepRows = 64;
/** Blocks of threads that share a row, each with a number of its own. */
const rowShares = 32;
/** The step's tables are put at multiples of it. */
const stepAlignmentBytes = 256;
const stepParts = 8;
/** Numbers in block tables that there is room for: of each block of the cache, twice. */
const tableBytesPerBlock = 2 * 4;
const float32Bytes = 4;
const halfBytes = 2;
/** An expert that a row has chosen, or the part of its sum that one makes, with its weight. */
const expertPartBytes = 8;
const expertTileBytes = 12;
/** Where an expert's matrix lies. */
const expertMatrixBytes = 16;

/** CUDA gives memory of a GPU in pages; allocations of up to half of one share pages. */
const pageBytes = 2 * 2 ** 20;
const smallAlignmentBytes = 512;
/** Of what lies in one allocation. */
const arenaAlignmentBytes = 256;
/** Pages that are shared and not full. */
const openPages = 2;
/** Keys and values are an allocation each. */
const kvAllocations = 2;
/**
 * What CUDA takes beside allocations after the worker has looked at what is free: the kernels' code, which it loads
 * when they first run, their stacks, and tables of pages. An allowance, not measured.
 */
const cudaBytes = 256 * 2 ** 20;

/** Allocations in a GPU's memory: their bytes, and what CUDA rounds them up by. */
class Allocations {
  bytes = 0;
  roundingBytes = 0;

  add(...sizes: number[]): this {
    for (const size of sizes) {
      this.bytes += size;
      this.roundingBytes += takenBytes(size) - size;
    }
    return this;
  }

  /** One that is counted with what the others are rounded up by. */
  addBeside(size: number): this {
    this.roundingBytes += takenBytes(size);
    return this;
  }

  /** In one, where each begins at a multiple of arenaAlignmentBytes. */
  addTogether(sizes: readonly number[]): this {
    const aligned = sizes.map((size) => Math.ceil(size / arenaAlignmentBytes) * arenaAlignmentBytes);
    const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
    this.bytes += sum(sizes);
    this.roundingBytes += takenBytes(sum(aligned)) - sum(sizes);
    return this;
  }
}

/** Of a page that is shared, as much as an allocation takes when all in it are of its size. */
function takenBytes(size: number): number {
  if (size === 0) return 0;
  if (size > pageBytes / 2) return Math.ceil(size / pageBytes) * pageBytes;
  const aligned = Math.ceil(size / smallAlignmentBytes) * smallAlignmentBytes;
  return Math.ceil(pageBytes / Math.floor(pageBytes / aligned));
}

export interface GpuModel {
  shape: ModelShape;
  layers: readonly HeldLayer[];
  head: HeldMatrix;
  /** Values of the final norm's weight and bias. */
  headVectors: readonly number[];
  prefix: PrefixTensors | null;
  /** Rows of one step, and of the context in it that is read in slices. */
  maxRows: number;
  contextRows: number;
}

export function gpuBytes(model: GpuModel): StageBytes {
  const { shape, prefix } = model;
  const prefixSize = (prefix?.length ?? 0) * 2 * shape.kvHeadCount * shape.headDim;
  const prefixRow = prefixSize * float32Bytes;
  const layers = model.layers.map(({ matrices, experts, vectors }) =>
    new Allocations()
      .addTogether(weightSizes([...matrices, ...experts], vectors))
      .addBeside(experts.length * expertMatrixBytes)
      .add(prefixRow),
  );
  const head = new Allocations().addTogether(weightSizes([model.head], model.headVectors));
  const logitRows = Math.min(model.maxRows, logitTile);
  const last = new Allocations().add(
    logitRows * shape.hiddenSize * float32Bytes,
    logitRows * shape.tokenCount * float32Bytes,
  );
  const stage = workspace(model);
  return {
    layerBytes: layers.map(({ bytes }) => bytes),
    layerRoundingBytes: layers.map(({ roundingBytes }) => roundingBytes),
    embeddingBytes: 0,
    headBytes: head.bytes,
    workspace: {
      stage: stage.bytes,
      perThread: 0,
      first: 0,
      last: last.bytes,
      lastPerThread: 0,
      perBlock: tableBytesPerBlock,
    },
    processBytes:
      cudaBytes +
      (openPages + kvAllocations) * pageBytes +
      stage.roundingBytes +
      head.roundingBytes +
      last.roundingBytes,
  };
}

function weightSizes(matrices: readonly HeldMatrix[], vectors: readonly number[]): number[] {
  return [...matrices.flatMap(matrixSizes), ...vectors.map((size) => size * float32Bytes)];
}

/** Its blocks, and a power of two for every output row. */
function matrixSizes({ rows, columns, format }: HeldMatrix): number[] {
  const blocks = Math.ceil(rows / blockRows) * Math.ceil(columns / blockColumns);
  const vectors = format === null ? storedVectors : vectorsPerLane[format.type];
  return [blocks * (vectors * warpVectorBytes + groupsPerBlock(format) * vectorBytes), rows * float32Bytes];
}

function groupsPerBlock(format: WeightFormat | null): number {
  if (format === null) return 0;
  const { groupSize } = format;
  return groupSize === 0 || groupSize >= blockColumns ? 1 : blockColumns / groupSize;
}

/** Of every stage, but for the tables of the cache's blocks. */
function workspace({ shape, layers, prefix, maxRows, contextRows }: GpuModel): Allocations {
  const { hiddenSize, headCount, headDim, ropeDim, experts } = shape;
  const queryColumns = headCount * headDim;
  const ffnSize = Math.max(shape.ffnSize, experts?.sharedFfnSize ?? 0);
  const tile = Math.min(maxRows, rowTile);
  const columns = layers.flatMap(({ matrices, experts }) => [...matrices, ...experts]);
  // A prefix encoder with layers of its own passes through them while the stage is loaded.
  const linears = [prefix?.hidden, prefix?.out].flatMap((linear) => linear?.weight.shape[1] ?? []);
  const widest = columns.reduce(
    (most, matrix) => Math.max(most, matrix.columns),
    Math.max(hiddenSize, ...linears),
  );
  const passing = linears.length === 0 ? 0 : prefix!.length;
  const floats = (rows: number, columns: number) => rows * columns * float32Bytes;
  return new Allocations().add(
    // Of the whole step; the residual stream of a context that is read in slices waits beside the step's.
    floats(contextRows, hiddenSize),
    floats(maxRows, hiddenSize),
    floats(maxRows, queryColumns),
    floats(maxRows, hiddenSize),
    floats(maxRows, 1),
    Math.max(maxRows, leastStepRows) * (stepRowBytes + ropeDim * float32Bytes) +
      stepParts * stepAlignmentBytes,
    // Of a tile within a layer.
    floats(tile, hiddenSize),
    floats(tile, hiddenSize),
    floats(tile, qkvRows(shape)),
    floats(tile, queryColumns),
    floats(tile, ffnInputs(shape.form) * ffnSize),
    floats(tile, ffnSize),
    // A product's rows as FP16.
    Math.max(halvesBytes(tile, widest), passing === 0 ? 0 : halvesBytes(passing, Math.max(...linears))),
    Math.max(tile, passing) * float32Bytes,
    floats(tile, rowShares),
    mostPartialBytes,
    ...(experts === null ? [] : expertAllocations(experts, hiddenSize, tile)),
  );
}

/** Of a tile whose rows are brought together by expert: each of its choices has a slot, in tiles of one expert each. */
function expertAllocations(
  { count, perToken, ffnSize }: ExpertShape,
  hiddenSize: number,
  tile: number,
): number[] {
  const choices = tile * perToken;
  const chosen = Math.min(count, choices);
  // No expert has more rows than there are, and each leaves at most one tile that is not full.
  const tiles =
    tile <= halfTileRows ? chosen : Math.floor((choices + chosen * (halfTileRows - 1)) / halfTileRows);
  const slots = tiles * halfTileRows;
  return [
    // What they give together.
    tile * hiddenSize * float32Bytes,
    tile * count * float32Bytes,
    choices * expertPartBytes,
    choices * expertPartBytes,
    slots * float32Bytes,
    tiles * expertTileBytes,
    halvesBytes(slots, Math.max(hiddenSize, ffnSize)),
    slots * float32Bytes,
    2 * slots * ffnSize * float32Bytes,
    slots * hiddenSize * float32Bytes,
  ];
}

/** Rows of FP16 numbers in front of a product: in tiles, with columns that are read ahead of the last one. */
function halvesBytes(rows: number, columns: number): number {
  const padded = Math.ceil(columns / blockColumns) * blockColumns;
  return (Math.ceil(rows / halfTileRows) * halfTileRows * padded + halfTileRows * columnsAhead) * halfBytes;
}
