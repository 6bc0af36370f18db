/**
 * Which sequence kills the pipelines that compute it. One that was on its way in several lost pipelines in a
 * row, whichever they were, without a token in between, is suspicious: it goes on trial in one pipeline, into
 * which no other may go meanwhile, so that the next loss tells. Its companions of the earlier losses get on
 * that way and are cleared. Pure.
 */
import type { PipelineId } from "../common/ids.js";

/** Lost pipelines in a row after which a sequence is suspicious, and after which its request is set aside. */
const suspiciousDeaths = 2;
const poisonousDeaths = 3;

/** What is known of one sequence. */
export interface Conduct {
  /** Pipelines in a row that were lost with rows of it on their way, and no token since. */
  deaths: number;
}

export const isSuspicious = ({ deaths }: Conduct): boolean => deaths >= suspiciousDeaths;

export class Suspects<T extends Conduct> {
  /** Those whose next token the others wait for, outside of these pipelines. */
  readonly #onTrial = new Map<PipelineId, T>();

  /** Whether others must stay out of the pipeline. */
  isTrying(pipeline: PipelineId): boolean {
    return this.#onTrial.has(pipeline);
  }

  /** A suspicious sequence goes into the pipeline. */
  try(pipeline: PipelineId, suspect: T): void {
    this.#onTrial.set(pipeline, suspect);
  }

  /**
   * A pipeline was lost.
   * @param sequences Those that it had, and those that wait for a pipeline: it was lost without them.
   * @param wasTravelling Whether rows of the sequence were on their way in it.
   * @returns Those that are to be set aside.
   */
  pipelineLost(pipeline: PipelineId, sequences: readonly T[], wasTravelling: (sequence: T) => boolean): T[] {
    this.#onTrial.delete(pipeline);
    for (const sequence of sequences) sequence.deaths = wasTravelling(sequence) ? sequence.deaths + 1 : 0;
    return sequences.filter(({ deaths }) => deaths >= poisonousDeaths);
  }

  /** The sequence has got on, or is over. @returns Whether others may go where it is now. */
  cleared(sequence: T): boolean {
    sequence.deaths = 0;
    for (const [pipeline, suspect] of this.#onTrial) {
      if (suspect === sequence) return this.#onTrial.delete(pipeline);
    }
    return false;
  }
}
