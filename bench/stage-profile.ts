/**
 * Measures a real native stage by rows and by context, for `glm-relay simulate --profile`: each layer, the head, and
 * what stages that compute at the same time read together. Random weights of a real width. A machine's speed changes
 * from one minute to the next, so the points are measured in turns, and a point's figure is the median over the turns.
 */
import { writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import type { Command } from "commander";
import { openModel } from "../checkpoint/index.js";
import { integer } from "../cli/options.js";
import { addPrecisionOptions, type PrecisionFlags } from "../cli/precision.js";
import { simulationModel } from "../cli/simulate/model.js";
import type { StepInput } from "../native/index.js";
import type { SimulatedModel } from "../simulation/hardware/model-work.js";
import { type Curve, profileFormat, type StageProfile } from "../simulation/hardware/profile.js";
import { StageWork } from "../simulation/hardware/stage-work.js";
import { decodeRowsMax, MeasuredStage } from "./measured-stage.js";
import { addRandomModelOptions, printJson, type RandomModelFlags, scratchModel } from "./options.js";
import { note } from "./progress.js";
import { percentile, processors } from "./report.js";

/** Rows of as many sequences, and beyond them rows of one. */
const decodeRows = [1, 2, 3, 4, 6, 8, 12, 16, 24, decodeRowsMax];
const chunkRows = [48, 64, 128, 256];
/** Tokens in front of a row that decodes, and of a chunk of that many rows. */
const shortContext = 16;
const contexts = [128, 256, 512, 896];
const contextChunk = 64;
const sampledRows = [1, 2, 4, 8, 16, 32];
/** Those that wait for memory most. */
const memoryBoundRows = [1, 2, 4];
/** Those that compute more than they read. */
const manyRows = 64;
/** Stages at the same time, while each has cores of its own. */
const companionsMax = 8;

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
    .option(
      "--rounds <n>",
      "measurements of each point, in turns, of which the median counts",
      integer(1, 100),
      5,
    )
    .option("--to <file>", "where the profile is written")
    .option("--json", "print the profile")
    .action(async (flags: ProfileFlags) => {
      const name = flags.model ?? `${flags.like}-shaped`;
      const measurement = await ProfileMeasurement.open(
        flags.model ?? (await scratchModel(flags)),
        name,
        flags,
      );
      for (let round = 1; round <= flags.rounds; round++) {
        await measurement.round();
        note(`round ${round} of ${flags.rounds}`);
      }
      const profile = measurement.profile();
      await measurement.close();
      if (flags.to !== undefined) writeFileSync(flags.to, `${JSON.stringify(profile, null, 1)}\n`);
      if (flags.json === true || flags.to === undefined) printJson(profile);
    });
}

/** Samples of a curve by x, one of each turn. */
type Samples = Map<number, number[]>;

/** Stages that are open, and what has been measured of them. */
export class ProfileMeasurement {
  readonly #layer: Samples = new Map();
  readonly #decodeKeys: Samples = new Map();
  readonly #chunkKeys: Samples = new Map();
  readonly #head: Samples = new Map();
  /** By rows: bytes per second of all bodies together. */
  readonly #together: Samples = new Map();
  readonly #crowding: Samples = new Map();

  private constructor(
    private readonly what: string,
    private readonly threads: number,
    private readonly model: SimulatedModel,
    /** Each holds all layers but the last, without the head. */
    private readonly bodies: readonly MeasuredStage[],
    /** The last layer with the head. */
    private readonly last: MeasuredStage,
  ) {}

  static async open(
    directory: string,
    name: string,
    flags: Pick<ProfileFlags, "threads"> & PrecisionFlags,
  ): Promise<ProfileMeasurement> {
    const model = await openModel(directory);
    const layers = model.shape.layerCount;
    const count = Math.min(companionsMax, Math.max(1, Math.floor(availableParallelism() / flags.threads)));
    note(`loading ${layers - 1} layers ${count} times, and the head`);
    const maxContext = Math.max(...contexts) + contextChunk;
    const open = (layerBegin: number, layerEnd: number) =>
      MeasuredStage.open(model, { layerBegin, layerEnd }, { ...flags, maxContext });
    const bodies: MeasuredStage[] = [];
    while (bodies.length < count) bodies.push(await open(0, layers - 1));
    const precision = `${flags.quantization ?? "none"}, KV ${flags.kv ?? "as stored"}`;
    const what = `${name} ${precision}, ${flags.threads} threads, ${processors()}`;
    const work = await simulationModel(directory, flags);
    return new ProfileMeasurement(what, flags.threads, work, bodies, await open(layers - 1, layers));
  }

  /** Measures each point once. */
  async round(): Promise<void> {
    const one = this.bodies[0]!;
    const layers = this.#layers;
    for (const rows of [...decodeRows, ...chunkRows]) {
      const step = rows <= decodeRowsMax ? one.decode(rows, shortContext) : one.chunk(rows, 0);
      sample(this.#layer, rows, (await one.ms(step)) / layers);
    }
    const more = async (plain: StepInput, step: StepInput) => {
      const plainMs = await one.ms(plain);
      return ((await one.ms(step)) - plainMs) / layers;
    };
    for (const context of contexts) {
      const decode = await more(one.decode(1, shortContext), one.decode(1, context));
      sample(this.#decodeKeys, context + 1, decode);
      const chunk = await more(one.chunk(contextChunk, 0), one.chunk(contextChunk, context));
      sample(this.#chunkKeys, context + (contextChunk + 1) / 2, chunk / contextChunk);
    }
    for (const rows of sampledRows) {
      const step = this.last.decode(rows, shortContext);
      const plainMs = await this.last.ms({ ...step, samples: [] });
      sample(this.#head, rows, (await this.last.ms(step)) - plainMs);
    }
    for (const rows of memoryBoundRows) {
      const ms = await this.#msTogether((stage) => stage.decode(rows, shortContext));
      sample(this.#together, rows, (1_000 * this.#bytesOf(rows) * this.bodies.length) / ms);
    }
    const many = (stage: MeasuredStage) => stage.chunk(manyRows, 0);
    sample(this.#crowding, manyRows, (await this.#msTogether(many)) / (await one.ms(many(one))));
  }

  profile(): StageProfile {
    const { hiddenSize, ffnSize } = this.model.shape;
    const decodeKeys = curve(this.#decodeKeys);
    const chunkKeys = curve(this.#chunkKeys);
    return {
      ...{ format: profileFormat, what: this.what },
      model: { hiddenSize, ffnSize, layerCount: this.#layers + 1 },
      layer: curve(this.#layer),
      decodeKeys: { x: [shortContext + 1, ...decodeKeys.x], y: [0, ...decodeKeys.y] },
      chunkKeys: { x: [(contextChunk + 1) / 2, ...chunkKeys.x], y: [0, ...chunkKeys.y] },
      head: curve(this.#head),
      sharedBandwidth: Math.max(...curve(this.#together).y),
      crowding: Math.max(1, ...curve(this.#crowding).y),
      ...{ threads: this.threads, cores: availableParallelism() },
    };
  }

  async close(): Promise<void> {
    for (const stage of [...this.bodies, this.last]) await stage.close();
  }

  get #layers(): number {
    return this.model.layers.length - 1;
  }

  /** Of a step of one body while all compute such ones. */
  async #msTogether(step: (stage: MeasuredStage) => StepInput): Promise<number> {
    const [one, ...others] = this.bodies as [MeasuredStage, ...MeasuredStage[]];
    let over = false;
    const company = others.map(async (other) => {
      while (!over) await other.run(step(other));
    });
    const ms = await one.ms(step(one));
    over = true;
    await Promise.all(company);
    return ms;
  }

  /** That a body reads of its weights in a step of single rows. */
  #bytesOf(rows: number): number {
    let bytes = 0;
    const stage = new StageWork(this.model, { layerBegin: 0, layerEnd: this.#layers });
    const work = { parts: [], rows, keyPairs: 0, keyReads: 0, sampled: 0, slice: null };
    stage.each(work, (each, _, count) => {
      bytes += each * count;
    });
    return bytes;
  }
}

function sample(samples: Samples, x: number, y: number): void {
  samples.set(x, [...(samples.get(x) ?? []), y]);
}

/** Medians, in the order of x. */
function curve(samples: Samples): Curve {
  const x = [...samples.keys()].sort((a, b) => a - b);
  return { x, y: x.map((each) => Math.max(0, percentile(samples.get(each)!, 50))) };
}
