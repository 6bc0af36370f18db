/**
 * What a step's way takes beside the stages' computing, by how many steps were on it. A round trip is
 * compute + hops + waiting, and only the first is measured. With one step on the way nothing waits. With more,
 * steps wait for each other in the stages, which the measured times account for, and elsewhere: event loops and
 * links take their time per step as well. What is left unexplained is such a station. Without it, slow event
 * loops would look like long hops, which more steps hide, and those would make them slower still.
 */
import { averaged } from "./average.js";

/** Steps that an average remembers. */
const memory = 32;
/** An average of fewer tells little. */
const leastSteps = 4;
/** After so many steps without another one, an average is about another time. */
const staleSteps = 512;
/** A mean round trip this much above the slowest stages of the steps on the way: it did not wait for them. */
const clearRatio = 1.1;
/**
 * Where all have waited for the slowest stage, the rest only bounds the hops. A saturated pipeline loses nothing by
 * one micro-batch fewer, so they are taken to be shorter than that until steps that do not wait show what they are.
 */
const hiddenShare = 0.75;
/** A mean round trip that much above what hops and stages explain. */
const unexplainedRatio = 1.5;

export interface RoundTrip {
  /** Steps on the way when it was sent, itself included. */
  onWay: number;
  roundtripUs: number;
  /** Compute time, one per stage. */
  stageUs: readonly number[];
  /** Slowest stages of the steps that were on the way when it was sent, summed: it waited no longer for them. */
  aheadUs: number;
}

/** Averages over steps with as many on the way. */
interface Mean {
  steps: number;
  lastStep: number;
  roundtripUs: number;
  /** Without the stages' computing. */
  restUs: number;
  /** Of the slowest stages, its own and those ahead. */
  queueUs: number;
}

export interface WayTimes {
  /** All hops of a step together. */
  hopUs: number;
  /** What the slowest station beside the stages takes per step; 0 where none shows. */
  stationUs: number;
}

export class RoundTrips {
  /** By steps on the way: at most maxMicroBatchesInFlight. */
  readonly #means = new Map<number, Mean>();
  #steps = 0;

  add({ onWay, roundtripUs, stageUs, aheadUs }: RoundTrip): void {
    this.#steps++;
    const restUs = Math.max(
      0,
      stageUs.reduce((rest, us) => rest - us, roundtripUs),
    );
    const queueUs = aheadUs + Math.max(...stageUs);
    let mean = this.#means.get(onWay);
    if (mean === undefined || this.#steps - mean.lastStep > staleSteps) {
      mean = { steps: 0, lastStep: 0, roundtripUs, restUs, queueUs };
      this.#means.set(onWay, mean);
    }
    mean.steps = Math.min(mean.steps + 1, memory);
    mean.lastStep = this.#steps;
    mean.roundtripUs = averaged(mean.roundtripUs, roundtripUs, mean.steps);
    mean.restUs = averaged(mean.restUs, restUs, mean.steps);
    mean.queueUs = averaged(mean.queueUs, queueUs, mean.steps);
  }

  get times(): WayTimes {
    const fresh = [...this.#means].filter(
      ([, { steps, lastStep }]) => steps >= leastSteps && this.#steps - lastStep <= staleSteps,
    );
    if (fresh.length === 0) return { hopUs: 0, stationUs: 0 };
    const boundUs = Math.min(...fresh.map(([, { restUs }]) => restUs));
    const waited = fresh.every(([, { roundtripUs, queueUs }]) => roundtripUs <= clearRatio * queueUs);
    const hopUs = waited ? hiddenShare * boundUs : boundUs;
    let stationUs = 0;
    let leastPerStepUs = Number.POSITIVE_INFINITY;
    for (const [onWay, { roundtripUs, restUs, queueUs }] of fresh) {
      const perStepUs = roundtripUs / onWay;
      leastPerStepUs = Math.min(leastPerStepUs, perStepUs);
      const explained = Math.max(roundtripUs - restUs + hopUs, queueUs);
      // Alone, a step waits for nothing.
      if (onWay > 1 && roundtripUs > unexplainedRatio * explained) stationUs = Math.max(stationUs, perStepUs);
    }
    // Whatever the number on the way, a station lets none through faster than its own time.
    return { hopUs, stationUs: Math.min(stationUs, leastPerStepUs) };
  }
}
