/** Small simulations for tests. */
import { paperModel } from "../../checkpoint/paper-model.js";
import { modelWork } from "../../cli/simulate/model.js";
import { type PublishedName, published } from "../../models/published.js";
import type { Precision } from "../../models/quantization.js";
import { type Assumptions, defaultAssumptions } from "../../simulation/hardware/assumptions.js";
import { type Device, devices } from "../../simulation/hardware/devices.js";
import { type Hardware, oneHost } from "../../simulation/hardware/hardware.js";
import type { LoadPart } from "../../simulation/hardware/load.js";
import type { SimulatedModel } from "../../simulation/hardware/model-work.js";
import type { SimulationOptions } from "../../simulation/hardware/simulate.js";

const int4 = { type: "int4", groupSize: 32, scales: "search" } as const;
const int8 = { type: "int8", groupSize: 32, scales: "search" } as const;
export const int4Precision: Precision = { dtype: "float16", kvType: "float16", weights: int4, head: int8 };

export function publishedModel(name: PublishedName, precision = int4Precision): Promise<SimulatedModel> {
  return modelWork(paperModel(published[name]), precision);
}

/** Memory for whatever a test puts there. */
export const roomy = (name: string): Device => ({ ...devices.get(name)!, memoryBytes: 400 * 2 ** 30 });

export const rigOf = (...names: string[]): Hardware => oneHost(names.map(roomy));

export const exactly: Assumptions = { ...defaultAssumptions, bandwidthEfficiency: 1, computeEfficiency: 1 };

export function closed(clients: number, requests: number, prompt: number, reply: number): LoadPart {
  return {
    arrivals: { kind: "closed", clients },
    requests,
    prompt: { kind: "fixed", tokens: prompt },
    reply: { kind: "fixed", tokens: reply },
    interactiveShare: 1,
  };
}

export function optionsFor(
  model: SimulatedModel,
  hardware: Hardware,
  load: LoadPart,
  changes: Partial<SimulationOptions> = {},
): SimulationOptions {
  return {
    model,
    hardware,
    assumptions: defaultAssumptions,
    seed: 1,
    acceptance: null,
    itlTargetMs: 200,
    prefillChunk: 256,
    microBatches: null,
    queueLimit: 10_000,
    recoveryTimeoutMs: 600_000,
    load: [load],
    kills: [],
    limitMs: 24 * 3_600_000,
    timeline: { fromMs: 0, toMs: 1_000 },
    ...changes,
  };
}
