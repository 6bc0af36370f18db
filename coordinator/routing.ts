/**
 * Which of the pipelines that serve a sequence goes to: the one where it is likely to be answered first. Pure.
 *
 * Everything is counted in sequences beside which it would run. One that waits counts for more than one that
 * runs, since nobody knows for how long. A prompt whose beginning is held saves its computation, which is
 * worth some sequences more: but never more than maxAffinity, so that a beginning which all prompts share
 * draws to a pipeline that many sequences beyond the others, and those then hold it as well.
 */

/** Held tokens of a prompt for which one sequence more is put up with, and how many at most. */
const heldPerSequence = 32;
const maxAffinity = 8;
/** A sequence that waits for KV blocks, in sequences that run; or the new one's own waiting. */
const waitingWeight = 4;

/** A pipeline that serves, as far as a new sequence is concerned. */
export interface Candidate {
  /** Tokens of the sequence whose keys and values stand there. */
  held: number;
  /** Sequences that hold KV blocks. */
  running: number;
  /** Sequences that wait for KV blocks and are admitted before it. */
  waiting: number;
  /** It would not have to wait for blocks. */
  startsAtOnce: boolean;
  /** Blocks that hold nothing: no cached prefix must go for the new sequence. */
  unused: number;
}

/** @returns The best one: of equal ones that with more tokens held, then more unused blocks, then the first. */
export function bestRoute<T extends Candidate>(candidates: readonly T[]): T | null {
  let best: T | null = null;
  for (const candidate of candidates) {
    if (best === null || compare(candidate, best) < 0) best = candidate;
  }
  return best;
}

function compare(a: Candidate, b: Candidate): number {
  return cost(a) - cost(b) || b.held - a.held || b.unused - a.unused;
}

function cost({ held, running, waiting, startsAtOnce }: Candidate): number {
  const affinity = Math.min(maxAffinity, Math.floor(held / heldPerSequence));
  return running + waitingWeight * (waiting + (startsAtOnce ? 0 : 1)) - affinity;
}
