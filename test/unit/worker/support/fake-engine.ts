/**
 * An engine that a test holds in its hands. Its arithmetic is simple enough to foretell: a row is four
 * floats, the embedding of token t is [t, t, t, t], each layer adds 1, and the drawn token is the sum
 * of the last row's floats modulo 100.
 */
import type { StepInput, StepOutput, TokenResult } from "../../../../native/index.js";
import type { Engine, EngineModel, EngineStage } from "../../../../worker/stage/engine.js";
import type { StagePlan } from "../../../../worker/stage/plan.js";

export const hiddenSize = 4;
export const tokenCount = 100;

export class FakeEngine implements Engine {
  readonly kernels = "fake";
  readonly backend = "cpu";
  readonly canonVersion = 1;
  fingerprint = "fake";
  built = 0;
  closed = 0;
  readonly inputs: StepInput[] = [];
  #gate: Promise<void> = Promise.resolve();
  #failure: Error | null = null;
  #buildFailure: string | null = null;
  #spoiled = false;

  /** Holds loads and steps until the returned function is called. */
  hold(): () => void {
    let release = () => {};
    this.#gate = new Promise((resolve) => {
      release = resolve;
    });
    return release;
  }

  failNextBuild(message: string): void {
    this.#buildFailure = message;
  }

  failNextStep(message: string): void {
    this.#failure = new Error(message);
  }

  /** The next step finds its device gone, as the native engine says it. */
  loseDevice(message: string): void {
    this.#failure = Object.assign(new Error(message), { code: "DEVICE_LOST" });
  }

  /** The next step's results are not finite. */
  spoilNextStep(): void {
    this.#spoiled = true;
  }

  async openModel(_directory: string): Promise<EngineModel> {
    return {
      fingerprint: this.fingerprint,
      layerCount: 4,
      prefixLength: 0,
      contextRows: 64,
      hiddenSize,
      tokenCount,
      buildStage: (plan) => this.#build(plan),
    };
  }

  async #build(plan: StagePlan): Promise<EngineStage> {
    await this.#gate;
    const message = this.#buildFailure;
    this.#buildFailure = null;
    if (message !== null) throw new Error(message);
    this.built += 1;
    let progress = 0n;
    return {
      weightBytes: 1_000,
      kvBytes: 2_000,
      workspaceBytes: 3_000,
      roundings: [],
      progress: () => progress,
      step: async (input) => {
        this.inputs.push(input);
        await this.#gate;
        if (this.#failure !== null) {
          const failure = this.#failure;
          this.#failure = null;
          throw failure;
        }
        progress += 10n;
        const output = compute(plan, input);
        if (!this.#spoiled) return output;
        this.#spoiled = false;
        return { ...output, samples: output.samples.map((result) => ({ ...result, finite: false })) };
      },
      close: async () => {
        this.closed += 1;
      },
    };
  }
}

function compute(plan: StagePlan, input: StepInput): StepOutput {
  const rows = input.sequences.reduce((sum, { rowCount }) => sum + rowCount, 0);
  const values = new Float32Array(rows * hiddenSize);
  if (input.tokenIds !== null) {
    for (let i = 0; i < values.length; i++) values[i] = input.tokenIds[Math.floor(i / hiddenSize)]!;
  } else {
    new Uint8Array(values.buffer).set(input.activations!);
  }
  for (let i = 0; i < values.length; i++) values[i]! += plan.layerEnd - plan.layerBegin;
  if (plan.stage < plan.stageCount - 1) {
    return { activations: new Uint8Array(values.buffer), samples: [], scores: [], computeUs: 500 };
  }
  const sumOf = (row: number) =>
    values.subarray(row * hiddenSize, (row + 1) * hiddenSize).reduce((a, b) => a + b, 0);
  return {
    activations: null,
    samples: input.samples.map(({ row }) => tokenResult(sumOf(row) % tokenCount, -1)),
    scores: input.scores.map(({ token, row }) => tokenResult(token, -row)),
    computeUs: 500,
  };
}

function tokenResult(token: number, logprob: number): TokenResult {
  return {
    token,
    logprob,
    rank: 1,
    topTokens: Int32Array.of(token, 7),
    topLogprobs: Float32Array.of(logprob, -2),
    finite: true,
  };
}
