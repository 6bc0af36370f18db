/** What all parts of a simulation share: the clock, the trace, and the first thing that should not have happened. */
import { EventLoop } from "../event-loop.js";
import { Trace } from "./trace.js";

/** What must hold, by name: a report says which one did not. */
export type Invariant =
  | "nothing throws"
  | "tokens are the model's"
  | "a request ends exactly once"
  | "nothing accepted is lost"
  | "one line per batch id"
  | "only allowed errors"
  | "headers fit the workers' tables"
  | "a block has one writer"
  | "a block in flight is not reused"
  | "steps come in order and within limits"
  | "credits hold"
  | "a deadline is kept"
  | "results are what was asked for"
  | "nobody computes for those who left"
  | "the queue limit holds"
  | "one owner per epoch"
  | "an old epoch changes nothing"
  | "books are kept"
  | "all blocks come back"
  | "everything drains";

export interface Violation {
  readonly invariant: Invariant;
  readonly message: string;
  readonly atMs: number;
}

export class World {
  readonly loop = new EventLoop();
  readonly trace = new Trace(this.loop);
  /** The first one: what follows may follow from it. */
  violation: Violation | null = null;
  /** A promise may go on: nothing else happens before it has. */
  unsettled = false;
  /** What happened how often, so that a set of seeds can show what it has reached. */
  readonly counts = new Map<string, number>();

  violate(invariant: Invariant, message: string): void {
    this.trace.note("VIOLATED", `${invariant}: ${message}`);
    this.violation ??= { invariant, message, atMs: this.loop.nowMs() };
  }

  count(what: string, times = 1): void {
    this.counts.set(what, (this.counts.get(what) ?? 0) + times);
  }
}
