/**
 * An engine that computes nothing: what a cluster costs beside its kernels is what is left. Block tables,
 * checks, links and control are those of every worker; only the numbers are made up.
 */
import { setTimeout as sleep, setImmediate as turn } from "node:timers/promises";
import { contextRowsOf, openModel } from "../../checkpoint/index.js";
import type { SampleRequest, StepInput, StepOutput, TokenResult } from "../../native/index.js";
import type { Engine, EngineStage } from "../../worker/stage/engine.js";
import { isFirst, isLast, type StagePlan } from "../../worker/stage/plan.js";

/** Values of a row of activations: those of a small model. */
const hiddenSize = 1_024;
const elementBytes = { float32: 4, float16: 2, bfloat16: 2 } as const;

/** Ids that it draws: ordinary text in every tokenizer, and none that ends an answer. */
const firstDrawn = 300;
const drawnCount = 1_000;

/**
 * What follows a token: a fixed function of it alone, so that every answer is known beforehand. It comes round
 * after a thousand tokens (a full period: 20 is a multiple of 2, 4 and 5), so that no answer repeats itself and
 * nothing in it can be guessed.
 */
export const nullNextToken = (token: number): number => firstDrawn + ((token * 21 + 13) % drawnCount);

/** Timers fire up to that much late. */
const timerSlackMs = 2;

const noInts = new Int32Array(0);
const noFloats = new Float32Array(0);

/** How long a stage pretends to compute a step. */
export interface Pretence {
  baseMs: number;
  rowMs: number;
}

/** @param pretence Absent: a step takes no time. */
export function nullEngine(pretence: Pretence = { baseMs: 0, rowMs: 0 }): Engine {
  return {
    kernels: "null",
    backend: "null",
    canonVersion: 0,
    async openModel(directory, options) {
      const model = await openModel(directory, options);
      const { shape, fingerprint, prefixLength } = model;
      return {
        fingerprint,
        layerCount: shape.layerCount,
        hiddenSize,
        tokenCount: shape.tokenCount,
        prefixLength,
        contextRows: contextRowsOf(model),
        buildStage: async (plan) => new NullStage(plan, pretence),
      };
    },
  };
}

/** Its activations hold the token of each row, so the last stage draws from what came through all others. */
class NullStage implements EngineStage {
  readonly weightBytes = 0;
  readonly kvBytes = 0;
  readonly workspaceBytes = 0;
  readonly roundings = [];
  readonly #plan: StagePlan;
  readonly #rowBytes: number;
  readonly #pretence: Pretence;
  #steps = 0n;

  constructor(plan: StagePlan, pretence: Pretence) {
    this.#plan = plan;
    this.#pretence = pretence;
    this.#rowBytes = hiddenSize * elementBytes[plan.dtype];
  }

  async step(input: StepInput): Promise<StepOutput> {
    this.#steps++;
    const rows = input.sequences.reduce((sum, { rowCount }) => sum + rowCount, 0);
    const computeUs = await this.#pretend(rows);
    const activations = isFirst(this.#plan)
      ? this.#embed(input.tokenIds ?? noInts)
      : Buffer.from(input.activations ?? noInts);
    if (!isLast(this.#plan)) {
      return { activations, ...this.#read(input), samples: [], scores: [], computeUs };
    }
    const tokenAt = (row: number) => activations.readInt32LE(row * this.#rowBytes);
    if (activations.length !== rows * this.#rowBytes) throw new Error(`${activations.length} bytes came`);
    return {
      activations: null,
      samples: input.samples.flatMap((request) => drawBehind(request, tokenAt)),
      scores: input.scores.map(({ token }) => result(token)),
      computeUs,
    };
  }

  progress(): bigint {
    return this.#steps;
  }

  async close(): Promise<void> {}

  /** Timers are late by a part of a millisecond: the rest is waited for in turns of the event loop. */
  async #pretend(rows: number): Promise<number> {
    const { baseMs, rowMs } = this.#pretence;
    const ms = baseMs + rowMs * rows;
    if (ms === 0) return 0;
    const began = performance.now();
    if (ms > timerSlackMs) await sleep(ms - timerSlackMs);
    while (performance.now() - began < ms) await turn();
    return Math.round((performance.now() - began) * 1_000);
  }

  /** Of a context in slices nothing is kept but the number of its rows. */
  #read({ slice }: StepInput): { sliceActivations?: Uint8Array } {
    const { layerEnd } = this.#plan;
    if (slice?.layerEnd !== layerEnd) return {};
    return { sliceActivations: new Uint8Array(slice.rows.rowCount * this.#rowBytes) };
  }

  #embed(tokens: Int32Array): Buffer {
    const activations = Buffer.alloc(tokens.length * this.#rowBytes);
    for (const [row, token] of tokens.entries()) activations.writeInt32LE(token, row * this.#rowBytes);
    return activations;
  }
}

/** Row after row, as long as what is drawn is the draft's next token. */
function drawBehind({ row, draft }: SampleRequest, tokenAt: (row: number) => number): TokenResult[] {
  const drawn: TokenResult[] = [];
  for (let index = 0; index <= draft.length; index++) {
    const token = nullNextToken(tokenAt(row + index));
    drawn.push(result(token));
    if (token !== draft[index]) break;
  }
  return drawn;
}

function result(token: number): TokenResult {
  return { token, logprob: 0, rank: 1, topTokens: noInts, topLogprobs: noFloats, finite: true };
}
