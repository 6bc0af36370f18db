/**
 * How long a stage computes (reference: roofline). Per group of matrices the larger of two times counts: reading
 * its bytes once, and doing the operations of all rows; for attention likewise. Each layer and each step has a fixed
 * part besides.
 */
import type { LayerRange } from "../../coordinator/placement/cut.js";
import type { Assumptions } from "./assumptions.js";
import type { Device } from "./devices.js";
import type { SimulatedModel } from "./model-work.js";
import type { Share } from "./sharing.js";
import { StageWork } from "./stage-work.js";
import type { StepWork } from "./step-work.js";

/** A step of a stage that has its host to itself. */
export interface StepCost {
  ms: number;
  /** Of what the stages of its host share, while it lasts. */
  share: Share;
}

/** Says what a step costs one stage. */
export interface StageTimer {
  cost(work: StepWork): StepCost;
}

/** Bytes and operations per second. */
export interface Speed {
  bandwidth: number;
  flops: number;
}

/** What one stage that computes alone really reaches. */
export function speedOf(device: Device, assumptions: Assumptions): Speed {
  const { bandwidth, flops, shared } = device;
  return reached(
    {
      bandwidth: Math.min(bandwidth, shared?.bandwidth ?? bandwidth),
      flops: Math.min(flops, shared?.flops ?? flops),
    },
    assumptions,
  );
}

const reached = ({ bandwidth, flops }: Speed, assumptions: Assumptions): Speed => ({
  bandwidth: bandwidth * assumptions.bandwidthEfficiency,
  flops: flops * assumptions.computeEfficiency,
});

export class RooflineTimer implements StageTimer {
  readonly #work: StageWork;
  readonly #assumptions: Assumptions;
  readonly #speed: Speed;
  /** All that the stages of a host reach together; null when nothing is shared. */
  readonly #shared: Speed | null;

  constructor(model: SimulatedModel, layers: LayerRange, device: Device, assumptions: Assumptions) {
    this.#work = new StageWork(model, layers);
    this.#assumptions = assumptions;
    this.#speed = speedOf(device, assumptions);
    this.#shared = device.shared === null ? null : reached(device.shared, assumptions);
  }

  cost(work: StepWork): StepCost {
    const { layerOverheadUs, stepOverheadUs } = this.#assumptions;
    let seconds = (stepOverheadUs + layerOverheadUs * this.#work.layersPassed(work)) / 1e6;
    let [allBytes, allFlops] = [0, 0];
    this.#work.each(work, (bytes, flops, count) => {
      seconds += count * Math.max(bytes / this.#speed.bandwidth, flops / this.#speed.flops);
      allBytes += count * bytes;
      allFlops += count * flops;
    });
    const shared = seconds > 0 ? this.#shared : null;
    const share = {
      memory: shared === null ? 0 : allBytes / seconds / shared.bandwidth,
      arithmetic: shared === null ? 0 : allFlops / seconds / shared.flops,
      crowding: 1,
    };
    return { ms: 1_000 * seconds, share };
  }
}
