/** What a step's time depends on, as far as the coordinator can know it. */
export interface StepSize {
  rows: number;
  /** Keys that its rows read in attention, summed over the rows. */
  keys: number;
}

/** Keys that the causal rows [start, start + count) of a sequence read: each all before it, and itself. */
export const causalKeys = (start: number, count: number): number => count * start + (count * (count + 1)) / 2;
