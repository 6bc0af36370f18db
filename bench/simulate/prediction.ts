/** What the simulator says of a load that is measured beside it. */
import { type Assumptions, defaultAssumptions } from "../../simulation/hardware/assumptions.js";
import type { Hardware } from "../../simulation/hardware/hardware.js";
import type { SimulatedModel } from "../../simulation/hardware/model-work.js";
import type { RunStage } from "../../simulation/hardware/run.js";
import { type SimulationOptions, simulate } from "../../simulation/hardware/simulate.js";
import type { StageTimer } from "../../simulation/hardware/timing.js";
import type { ClosedLoad, LoadFigures } from "./closed-load.js";

export interface Predicted {
  model: SimulatedModel;
  hardware: Hardware;
  timer: (stage: Omit<RunStage, "timer">) => StageTimer;
  assumptions?: Assumptions;
}

/** As the coordinator runs by default. */
export const coordinatorDefaults = {
  acceptance: null,
  itlTargetMs: 200,
  prefillChunk: 256,
  microBatches: null,
  queueLimit: 10_000,
  recoveryTimeoutMs: 600_000,
} as const;

export function closedOptions(
  { model, hardware, assumptions = defaultAssumptions }: Omit<Predicted, "timer">,
  { clients, requests, promptTokens, replyTokens }: ClosedLoad,
): SimulationOptions {
  return {
    ...coordinatorDefaults,
    ...{ model, hardware, assumptions, seed: 1, kills: [] },
    load: [
      {
        arrivals: { kind: "closed", clients },
        requests,
        prompt: { kind: "fixed", tokens: promptTokens },
        reply: { kind: "fixed", tokens: replyTokens },
        interactiveShare: 1,
      },
    ],
    limitMs: 24 * 3_600_000,
    timeline: { fromMs: 0, toMs: 1 },
  };
}

/** @param earlier Loads that the cluster has had before: it has learnt its times from them. */
export function predict(of: Predicted, load: ClosedLoad, earlier: readonly ClosedLoad[]): LoadFigures {
  const before = earlier.flatMap((one) => closedOptions(of, one).load);
  const { figures } = simulate({ ...closedOptions(of, load), earlier: before, timer: of.timer });
  return {
    tokensPerSecond: figures.fullLoad?.tokensPerSecond ?? figures.tokensPerSecond,
    ttftMs: figures.ttftMs!.p50,
    itlMs: figures.itlMs!.p50,
  };
}
