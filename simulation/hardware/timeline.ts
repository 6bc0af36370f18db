/** When each worker computed what: for figures of a span of time, and for a picture of one. */

/** A step on one stage, times in ms. */
export interface Segment {
  startMs: number;
  endMs: number;
  pipeline: number;
  step: number;
  decodeRows: number;
  prefillRows: number;
  /** Rows that were computed before and are built again. */
  replayRows: number;
}

/** Of one worker; a picture with more would not be readable. */
const segmentsMax = 20_000;

export class Timeline {
  readonly #segments: Segment[][];
  /** When the load began: what a picture calls 0. */
  readonly originMs: number;
  readonly fromMs: number;
  readonly toMs: number;
  /** Some that belong to the span were left out. */
  truncated = false;

  /** @param span The span that is kept, ms after the load began. */
  constructor(workers: number, originMs: number, span: { fromMs: number; toMs: number }) {
    this.#segments = Array.from({ length: workers }, () => []);
    this.originMs = originMs;
    this.fromMs = originMs + span.fromMs;
    this.toMs = originMs + span.toMs;
  }

  add(worker: number, segment: Segment): void {
    if (segment.endMs <= this.fromMs || segment.startMs >= this.toMs) return;
    const own = this.#segments[worker]!;
    if (own.length >= segmentsMax) this.truncated = true;
    else own.push(segment);
  }

  of(worker: number): readonly Segment[] {
    return this.#segments[worker]!;
  }
}
