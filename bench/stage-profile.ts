/**
 * Measures a real native stage by rows and by context, for `glm-relay simulate --profile`: each layer, the head, and
 * how much two stages that compute at the same time slow each other down. Random weights of a real width.
 */
import { writeFileSync } from "node:fs";
import type { Command } from "commander";
import { type Model, openModel, stageTensors } from "../checkpoint/index.js";
import { integer } from "../cli/options.js";
import { addPrecisionOptions, type PrecisionFlags, quantizationOf } from "../cli/precision.js";
import { kvBlockSize } from "../common/limits.js";
import { dtypeBytes } from "../models/shape.js";
import { type SampleRequest, Stage, type StepInput, type StepOutput } from "../native/index.js";
import { type Curve, profileFormat, type StageProfile } from "../simulation/hardware/profile.js";
import { addRandomModelOptions, printJson, type RandomModelFlags, scratchModel } from "./options.js";
import { note } from "./progress.js";
import { percentile, processors } from "./report.js";

/** Rows of as many sequences, and beyond them rows of one. */
const decodeRows = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32];
const chunkRows = [48, 64, 96, 128, 192, 256];
/** Tokens in front of a row that decodes, and of a chunk of that many rows. */
const shortContext = 16;
const contexts = [128, 256, 512, 896];
const contextChunk = 64;
const sampledRows = [1, 2, 4, 8, 16, 32];
const warmUps = 2;
const maxRows = 256;
/** For the longest context, or for all single rows. */
const sequenceBlocks = Math.ceil((Math.max(...contexts) + contextChunk) / kvBlockSize);

export interface ProfileFlags extends RandomModelFlags, PrecisionFlags {
  model?: string;
  threads: number;
  rounds: number;
  to?: string;
  json?: boolean;
}

export function addStageProfileCommand(program: Command): void {
  const command = program
    .command("stage-profile")
    .description("Measures a native stage by rows and context; writes the file for simulate --profile.");
  addPrecisionOptions(addRandomModelOptions(command, { like: "chatglm2-6b", layers: 5, context: 1_024 }))
    .option("--model <dir>", "a model to measure instead")
    .option("--threads <n>", "compute threads of a stage", integer(1, 256), 1)
    .option("--rounds <n>", "measurements of each point, of which the median counts", integer(1, 100), 5)
    .option("--to <file>", "where the profile is written")
    .option("--json", "print the profile")
    .action(async (flags: ProfileFlags) => {
      const name = flags.model ?? `${flags.like}-shaped`;
      const profile = await measureProfile(flags.model ?? (await scratchModel(flags)), name, flags);
      if (flags.to !== undefined) writeFileSync(flags.to, `${JSON.stringify(profile, null, 1)}\n`);
      if (flags.json === true || flags.to === undefined) printJson(profile);
    });
}

/** One layer of the model goes to the stage with the head, all others to the one whose layers are measured. */
export async function measureProfile(
  directory: string,
  name: string,
  flags: Pick<ProfileFlags, "threads" | "rounds"> & PrecisionFlags,
): Promise<StageProfile> {
  const model = await openModel(directory);
  const { hiddenSize, ffnSize, layerCount } = model.shape;
  const layers = layerCount - 1;
  note(`loading ${layers} layers twice, and the head`);
  const body = () => MeasuredStage.open(model, { layerBegin: 0, layerEnd: layers }, flags);
  const [one, other] = [await body(), await body()];
  const layer: Curve = { x: [], y: [] };
  for (const rows of [...decodeRows, ...chunkRows]) {
    const step = rows <= decodeRows.at(-1)! ? one.decode(rows, shortContext) : one.chunk(rows, 0);
    add(layer, rows, (await one.median(step)) / layers);
  }
  note("by rows");
  const decodeKeys: Curve = { x: [shortContext + 1], y: [0] };
  const chunkKeys: Curve = { x: [(contextChunk + 1) / 2], y: [0] };
  const plainDecode = await one.median(one.decode(1, shortContext));
  const plainChunk = await one.median(one.chunk(contextChunk, 0));
  for (const context of contexts) {
    const decode = (await one.median(one.decode(1, context))) - plainDecode;
    add(decodeKeys, context + 1, Math.max(0, decode) / layers);
    const chunk = (await one.median(one.chunk(contextChunk, context))) - plainChunk;
    add(chunkKeys, context + (contextChunk + 1) / 2, Math.max(0, chunk) / (layers * contextChunk));
  }
  note("by context");
  const beside = [1, await slowdown(one, other)];
  await other.close();
  await one.close();
  const last = await MeasuredStage.open(model, { layerBegin: layers, layerEnd: layerCount }, flags);
  const head: Curve = { x: [], y: [] };
  for (const rows of sampledRows) {
    const step = last.decode(rows, shortContext);
    add(head, rows, (await last.median(step)) - (await last.median({ ...step, samples: [] })));
  }
  await last.close();
  const what =
    `${name} ${flags.quantization ?? "none"}, KV ${flags.kv ?? "as stored"}, ` +
    `${flags.threads} threads, ${processors()}`;
  return {
    ...{ format: profileFormat, what, model: { hiddenSize, ffnSize, layerCount } },
    ...{ layer, decodeKeys, chunkKeys, head, beside },
  };
}

function add(curve: Curve, x: number, ms: number): void {
  curve.x.push(x);
  curve.y.push(Math.max(0, ms));
}

/** Of steps with a few rows, when both stages compute all the time. */
async function slowdown(one: MeasuredStage, other: MeasuredStage): Promise<number> {
  const alone = await one.median(one.decode(2, shortContext));
  let over = false;
  const company = (async () => {
    while (!over) await other.run(other.decode(2, shortContext));
  })();
  const beside = await one.median(one.decode(2, shortContext));
  over = true;
  await company;
  return Math.max(1, beside / alone);
}

class MeasuredStage {
  readonly #stage: Stage;
  readonly #rowBytes: number;
  readonly #first: boolean;
  readonly #rounds: number;

  private constructor(stage: Stage, rowBytes: number, first: boolean, rounds: number) {
    this.#stage = stage;
    this.#rowBytes = rowBytes;
    this.#first = first;
    this.#rounds = rounds;
  }

  static async open(
    model: Model,
    { layerBegin, layerEnd }: { layerBegin: number; layerEnd: number },
    flags: Pick<ProfileFlags, "threads" | "rounds"> & PrecisionFlags,
  ): Promise<MeasuredStage> {
    const { weights, head: headWeights } = quantizationOf(flags);
    const dtype = flags.dtype ?? model.dtype;
    const first = layerBegin === 0;
    const part = { layerBegin, layerEnd, embed: first, head: layerEnd === model.shape.layerCount };
    const stage = await Stage.create({
      ...{ shape: model.shape, layerBegin, layerEnd, ...stageTensors(model, part) },
      ...{ weights, headWeights, dtype, kvType: flags.kv ?? dtype },
      ...{ blockCount: sequenceBlocks + 2 * decodeRows.at(-1)!, blockSize: kvBlockSize },
      ...{ maxRows, contextRows: 0, threads: flags.threads },
    });
    return new MeasuredStage(stage, model.shape.hiddenSize * dtypeBytes(dtype), first, flags.rounds);
  }

  /** One row of each of so many sequences. */
  decode(rows: number, context: number): StepInput {
    const blocks = Math.ceil((context + 1) / kvBlockSize);
    const sequences = Array.from({ length: rows }, (_, index) => ({
      ...{ rowCount: 1, startPosition: context, contextLength: 0, maskPosition: -1 },
      blockTable: Int32Array.from({ length: blocks }, (_, block) => index * blocks + block),
    }));
    return this.#input(sequences, rows);
  }

  /** Rows of one sequence. */
  chunk(rows: number, context: number): StepInput {
    const blocks = Math.ceil((context + rows) / kvBlockSize);
    const blockTable = Int32Array.from({ length: blocks }, (_, block) => block);
    const sequence = {
      rowCount: rows,
      startPosition: context,
      contextLength: 0,
      maskPosition: -1,
      blockTable,
    };
    return { ...this.#input([sequence], rows), samples: [] };
  }

  run(step: StepInput): Promise<StepOutput> {
    return this.#stage.step(step);
  }

  /** ms in the engine. */
  async median(step: StepInput): Promise<number> {
    const times: number[] = [];
    for (let round = -warmUps; round < this.#rounds; round++) {
      const { computeUs } = await this.run(step);
      if (round >= 0) times.push(computeUs / 1_000);
    }
    return percentile(times, 50);
  }

  close(): Promise<void> {
    return this.#stage.close();
  }

  #input(sequences: StepInput["sequences"], rows: number): StepInput {
    const sample = (row: number): SampleRequest => ({
      ...{ row, temperature: 0, topK: 0, topP: 1, minP: 0, seed: 0n },
      ...{ topLogprobs: -1, bannedTokens: new Int32Array(0), draft: new Int32Array(0), position: 0 },
    });
    return {
      sequences,
      tokenIds: this.#first ? Int32Array.from({ length: rows }, (_, row) => row + 1) : null,
      activations: this.#first ? null : new Uint8Array(rows * this.#rowBytes),
      samples: this.#first ? [] : Array.from({ length: rows }, (_, row) => sample(row)),
      scores: [],
    };
  }
}
