/**
 * How long a stage computes (reference: roofline). Per group of matrices the larger of two times counts: reading
 * its bytes once, and doing the operations of all rows; for attention likewise, with the keys and values that the
 * rows see. Each layer and each step has a fixed part besides.
 */
import type { LayerRange } from "../../coordinator/placement/cut.js";
import type { Assumptions } from "./assumptions.js";
import type { Device } from "./devices.js";
import type { LayerWork, MatrixWork, SimulatedModel } from "./model-work.js";
import { type SequencePart, type StepWork, sizeOf } from "./step-work.js";

/** Says how long one stage takes, in ms. */
export interface StageTimer {
  /** @param beside Stages that compute at the same time on what it shares with them, itself included. */
  stepMs(work: StepWork, beside: number): number;
}

/** Bytes and operations per second that are really reached. */
export interface Speed {
  bandwidth: number;
  flops: number;
}

/** What one of `beside` stages has that compute at the same time. */
export function speedOf(device: Device, assumptions: Assumptions, beside: number): Speed {
  const { bandwidth, flops, shared } = device;
  const of = (own: number, all: number | undefined) =>
    all === undefined ? own : Math.min(own, all / beside);
  return {
    bandwidth: of(bandwidth, shared?.bandwidth) * assumptions.bandwidthEfficiency,
    flops: of(flops, shared?.flops) * assumptions.computeEfficiency,
  };
}

const rooflineS = (bytes: number, flops: number, speed: Speed): number =>
  Math.max(bytes / speed.bandwidth, flops / speed.flops);

/** Experts that at least one of so many rows is sent to, if rows choose independently. */
export const expertsRead = (count: number, perToken: number, rows: number): number =>
  count * (1 - (1 - perToken / count) ** rows);

/** All layers of one kind on a stage. */
interface Kind {
  work: LayerWork;
  count: number;
}

export class RooflineTimer implements StageTimer {
  readonly #model: SimulatedModel;
  readonly #layers: LayerRange;
  readonly #assumptions: Assumptions;
  readonly #device: Device;
  readonly #kinds: readonly Kind[];
  readonly #hasHead: boolean;
  /** By the number of stages that compute at the same time. */
  readonly #speeds: Speed[] = [];

  constructor(model: SimulatedModel, layers: LayerRange, device: Device, assumptions: Assumptions) {
    this.#model = model;
    this.#layers = layers;
    this.#device = device;
    this.#assumptions = assumptions;
    this.#hasHead = layers.layerEnd === model.layers.length;
    this.#kinds = kindsOf(model.layers, layers);
  }

  stepMs(work: StepWork, beside = 1): number {
    this.#speeds[beside] ??= speedOf(this.#device, this.#assumptions, beside);
    const speed = this.#speeds[beside];
    let seconds = this.#assumptions.stepOverheadUs / 1e6;
    if (work.rows > 0) seconds += this.#layersS(this.#kinds, work, speed);
    if (this.#hasHead && work.sampled > 0) seconds += matrixS(this.#model.head, work.sampled, speed);
    return 1_000 * (seconds + this.#sliceS(work, speed));
  }

  /** Rows of a context pass through some of the layers in front of the step's rows, and read them once more. */
  #sliceS({ slice }: StepWork, speed: Speed): number {
    if (slice === null) return 0;
    const layerBegin = Math.max(slice.layerBegin, this.#layers.layerBegin);
    const layerEnd = Math.min(slice.layerEnd, this.#layers.layerEnd);
    if (layerBegin >= layerEnd) return 0;
    const part: SequencePart = slice;
    return this.#layersS(kindsOf(this.#model.layers, { layerBegin, layerEnd }), sizeOf([part]), speed);
  }

  #layersS(
    kinds: readonly Kind[],
    { rows, keyPairs, keyReads }: Pick<StepWork, "rows" | "keyPairs" | "keyReads">,
    speed: Speed,
  ): number {
    const { keyFlops, kvBytesPerToken } = this.#model;
    const attention = rooflineS(keyReads * kvBytesPerToken, keyPairs * keyFlops, speed);
    const fixed = this.#assumptions.layerOverheadUs / 1e6;
    let seconds = 0;
    for (const { work, count } of kinds) {
      let layer = attention + fixed;
      for (const each of work.matrices) layer += matrixS(each, rows, speed);
      if (work.experts !== null) {
        const { bytes, flopsPerRow, count: all, perToken } = work.experts;
        layer += rooflineS((bytes * expertsRead(all, perToken, rows)) / all, rows * flopsPerRow, speed);
      }
      seconds += count * layer;
    }
    return seconds;
  }
}

const matrixS = ({ bytes, flopsPerRow }: MatrixWork, rows: number, speed: Speed): number =>
  rooflineS(bytes, rows * flopsPerRow, speed);

function kindsOf(layers: readonly LayerWork[], { layerBegin, layerEnd }: LayerRange): Kind[] {
  const counts = new Map<LayerWork, number>();
  for (const work of layers.slice(layerBegin, layerEnd)) counts.set(work, (counts.get(work) ?? 0) + 1);
  return [...counts].map(([work, count]) => ({ work, count }));
}
