/**
 * A stage on a GPU with many layers of random weights, of which one is on the disk: every layer reads the same
 * file, so that a fourth of GLM-130B needs 6 GB of disk and not 67.
 */

import { availableParallelism } from "node:os";
import { product } from "../checkpoint/card-tensors.js";
import { openModel, stageTensors } from "../checkpoint/index.js";
import { quantizationOf } from "../cli/precision.js";
import { kvBlockSize } from "../common/limits.js";
import type { DType, ModelShape } from "../models/shape.js";
import { dtypeBytes } from "../models/shape.js";
import { type Gpu, Stage, type StepInput } from "../native/index.js";
import { percentile } from "./report.js";
import { decodingSequences, greedySamples, sequence } from "./stage-steps.js";

/** Rows of a step. */
const maxRows = 2_048;
/** Graphs of a step's kernels are made when it comes for the second time. */
const warmUps = 4;
const repeats = 12;

export interface GpuStageOptions {
  /** With one layer. */
  directory: string;
  layers: number;
  /** It has neither embedding nor head: one in the middle of a pipeline. */
  middle: boolean;
  quantization: "int4" | "int8";
  device: Gpu;
  /** Sequences times tokens that the cache holds. */
  cacheTokens: number;
}

export class GpuStage {
  private constructor(
    private readonly stage: Stage,
    private readonly shape: ModelShape,
    private readonly dtype: DType,
    private readonly middle: boolean,
    private readonly layers: number,
    /** Of all layers' matrices, which every row is multiplied by. */
    readonly matrixWeights: number,
  ) {}

  static async open(options: GpuStageOptions): Promise<GpuStage> {
    const { layers, middle, device } = options;
    const model = await openModel(options.directory);
    const part = { layerBegin: 0, layerEnd: 1, embed: !middle, head: !middle };
    const tensors = stageTensors(model, part);
    const { weights, head } = quantizationOf({
      quantization: options.quantization,
      scales: "absmax",
    });
    const before = middle ? 1 : 0;
    const shape = { ...model.shape, layerCount: layers + 2 * before };
    const stage = await Stage.create(
      {
        ...{ shape, layerBegin: before, layerEnd: before + layers, ...tensors },
        layers: Array.from({ length: layers }, () => tensors.layers[0]!),
        ...{ weights, headWeights: head, dtype: model.dtype, kvType: model.dtype },
        ...{ blockCount: Math.ceil(options.cacheTokens / kvBlockSize) + 64, blockSize: kvBlockSize },
        ...{ maxRows, contextRows: 0, threads: availableParallelism() },
      },
      undefined,
      null,
      device,
    );
    const { qkvWeight, attentionOut, ffnUp, ffnDown } = tensors.layers[0]!;
    const matrices = [...qkvWeight, ...attentionOut, ...ffnUp, ...ffnDown];
    const ofLayer = matrices.reduce((sum, { shape: sizes }) => sum + product(sizes), 0);
    return new GpuStage(stage, shape, model.dtype, middle, layers, layers * ofLayer);
  }

  get weightBytes(): number {
    return this.stage.weightBytes;
  }

  /** Of keys and values that a step of one row for each of so many sequences reads. */
  contextBytes(sequences: number, context: number): number {
    const { kvHeadCount, headDim } = this.shape;
    const perToken = 2 * kvHeadCount * headDim * dtypeBytes(this.dtype) * this.layers;
    return sequences * context * perToken;
  }

  /** Milliseconds of a step of one row for each of so many sequences, copies in and out included. */
  decode(sequences: number, context: number): Promise<number> {
    return this.#ms(decodingSequences(sequences, context), !this.middle);
  }

  /** Of a step that reads so many tokens of one sequence. */
  read(rowCount: number, before = 0): Promise<number> {
    return this.#ms([sequence(rowCount, before)], false);
  }

  /** The slots that decode() reads get keys and values: memory as it comes may hold NaN. */
  async fill(sequences: number, context: number): Promise<void> {
    const blocks = Math.ceil((context + 1) / kvBlockSize);
    for (let index = 0; index < sequences; index++) {
      for (let before = 0; before < context; before += maxRows) {
        const rowCount = Math.min(maxRows, context - before);
        await this.stage.step(this.#step([sequence(rowCount, before, index * blocks)], false));
      }
    }
  }

  close(): Promise<void> {
    return this.stage.close();
  }

  #step(sequences: StepInput["sequences"], samples: boolean): StepInput {
    const rows = sequences.reduce((sum, { rowCount }) => sum + rowCount, 0);
    return {
      sequences,
      tokenIds: this.middle
        ? null
        : Int32Array.from({ length: rows }, (_, row) => (row * 37) % Math.min(1_000, this.shape.tokenCount)),
      activations: this.middle ? this.#activations(rows) : null,
      samples: samples ? greedySamples(rows) : [],
      scores: [],
    };
  }

  /** Numbers of either sign in either type of two bytes; in float16 from 0.5 to 1 in magnitude. */
  #activations(rows: number): Uint8Array {
    const values = new Uint16Array((rows * this.shape.hiddenSize * dtypeBytes(this.dtype)) / 2);
    for (let index = 0; index < values.length; index++) {
      const bits = Math.imul(index + 1, 0x9e3779b1) >>> 16;
      values[index] = (bits & 0x83ff) | 0x3800;
    }
    return new Uint8Array(values.buffer);
  }

  async #ms(sequences: StepInput["sequences"], samples: boolean): Promise<number> {
    const step = this.#step(sequences, samples);
    const times: number[] = [];
    for (let index = -warmUps; index < repeats; index++) {
      const { computeUs } = await this.stage.step(step);
      if (index >= 0) times.push(computeUs / 1_000);
    }
    return percentile(times, 50);
  }
}
