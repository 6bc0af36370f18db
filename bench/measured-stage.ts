/** A native stage whose steps are timed. */
import { type Model, stageTensors } from "../checkpoint/index.js";
import { type PrecisionFlags, quantizationOf } from "../cli/precision.js";
import { kvBlockSize } from "../common/limits.js";
import type { LayerRange } from "../coordinator/placement/cut.js";
import { dtypeBytes } from "../models/shape.js";
import { Stage, type StepInput, type StepOutput } from "../native/index.js";
import { percentile } from "./report.js";
import { decodingSequences, greedySamples, sequence } from "./stage-steps.js";

/** Sequences that decode in one step. */
export const decodeRowsMax = 32;
const maxRows = 256;
const warmUps = 1;
const repeats = 3;

interface MeasuredFlags extends PrecisionFlags {
  threads: number;
  /** Tokens of a sequence; several have two blocks each. */
  maxContext: number;
}

export class MeasuredStage {
  private constructor(
    private readonly stage: Stage,
    private readonly rowBytes: number,
    private readonly first: boolean,
  ) {}

  /** The last layer comes with the head. */
  static async open(
    model: Model,
    { layerBegin, layerEnd }: LayerRange,
    flags: MeasuredFlags,
  ): Promise<MeasuredStage> {
    const { weights, head: headWeights } = quantizationOf(flags);
    const dtype = flags.dtype ?? model.dtype;
    const first = layerBegin === 0;
    const part = { layerBegin, layerEnd, embed: first, head: layerEnd === model.shape.layerCount };
    const blockCount = Math.ceil(flags.maxContext / kvBlockSize) + 2 * decodeRowsMax;
    const stage = await Stage.create({
      ...{ shape: model.shape, layerBegin, layerEnd, ...stageTensors(model, part) },
      ...{ weights, headWeights, dtype, kvType: flags.kv ?? dtype },
      ...{ blockCount, blockSize: kvBlockSize, maxRows, contextRows: 0, threads: flags.threads },
    });
    return new MeasuredStage(stage, model.shape.hiddenSize * dtypeBytes(dtype), first);
  }

  /** One row of each of so many sequences. */
  decode(rows: number, context: number): StepInput {
    return this.#input(decodingSequences(rows, context), rows);
  }

  /** Rows of one sequence, of which none is sampled. */
  chunk(rows: number, context: number): StepInput {
    return { ...this.#input([sequence(rows, context)], rows), samples: [] };
  }

  run(step: StepInput): Promise<StepOutput> {
    return this.stage.step(step);
  }

  /** Of a few steps, in the engine. */
  async ms(step: StepInput): Promise<number> {
    const times: number[] = [];
    for (let index = -warmUps; index < repeats; index++) {
      const { computeUs } = await this.run(step);
      if (index >= 0) times.push(computeUs / 1_000);
    }
    return percentile(times, 50);
  }

  close(): Promise<void> {
    return this.stage.close();
  }

  #input(sequences: StepInput["sequences"], rows: number): StepInput {
    return {
      sequences,
      tokenIds: this.first ? Int32Array.from({ length: rows }, (_, row) => row + 1) : null,
      activations: this.first ? null : new Uint8Array(rows * this.rowBytes),
      samples: this.first ? [] : greedySamples(rows),
      scores: [],
    };
  }
}
