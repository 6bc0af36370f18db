/** Time that passes only when it is told to, and what happens in it: the same calls give the same order. */
import type { Clock } from "../common/clock.js";

interface Event {
  readonly atMs: number;
  /** Of two at the same time the one that was planned first. */
  readonly order: number;
  /** null: it was called off, or has happened. */
  run: (() => void) | null;
}

/** Something that was planned and may be called off. */
export interface Planned {
  cancel(): void;
}

export class EventLoop implements Clock {
  /** A binary heap: no event is before its parent, at half its index. */
  readonly #heap: Event[] = [];
  #cancelled = 0;
  #nowMs = 0;
  #planned = 0;

  nowMs(): number {
    return this.#nowMs;
  }

  /** Events that will happen. */
  get pending(): number {
    return this.#heap.length - this.#cancelled;
  }

  /** @param atMs Not before now: what is late happens now, behind what was planned for now. */
  at(atMs: number, run: () => void): Planned {
    const event: Event = { atMs: Math.max(atMs, this.#nowMs), order: this.#planned++, run };
    this.#push(event);
    return { cancel: () => this.#cancel(event) };
  }

  after(delayMs: number, run: () => void): Planned {
    return this.at(this.#nowMs + delayMs, run);
  }

  /** From `everyMs` from now on, until it is called off. */
  every(everyMs: number, run: () => void): Planned {
    let next = this.after(everyMs, tick.bind(this));
    function tick(this: EventLoop): void {
      next = this.after(everyMs, tick.bind(this));
      run();
    }
    return { cancel: () => next.cancel() };
  }

  /** The next event happens. @returns false when there is none. */
  step(): boolean {
    for (let event = this.#pop(); event !== null; event = this.#pop()) {
      const { run } = event;
      if (run === null) {
        this.#cancelled--;
        continue;
      }
      event.run = null;
      this.#nowMs = event.atMs;
      run();
      return true;
    }
    return false;
  }

  /** All events up to a time, which it is then. */
  runUntil(endMs: number): void {
    for (let next = this.#next(); next !== null && next.atMs <= endMs; next = this.#next()) this.step();
    this.#nowMs = Math.max(this.#nowMs, endMs);
  }

  /** What was called off in front of it is gone then. */
  #next(): Event | null {
    while (this.#heap[0]?.run === null) {
      this.#pop();
      this.#cancelled--;
    }
    return this.#heap[0] ?? null;
  }

  #cancel(event: Event): void {
    if (event.run === null) return;
    event.run = null;
    this.#cancelled++;
  }

  #push(event: Event): void {
    const heap = this.#heap;
    let index = heap.length;
    heap.push(event);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isBefore(event, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = event;
  }

  #pop(): Event | null {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined) return null;
    if (heap.length === 0) return first;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = last;
    return first;
  }
}

const isBefore = (one: Event, other: Event): boolean =>
  one.atMs < other.atMs || (one.atMs === other.atMs && one.order < other.order);
