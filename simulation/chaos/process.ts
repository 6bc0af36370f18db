/** A process: its events come one after the other, it may stand still for a while, and it dies with all its timers. */
import type { Timers } from "../../common/clock.js";
import type { World } from "./world.js";

/** The simulation begins at this time of day. */
const beganAtMs = 1_800_000_000_000;

export class Process {
  readonly name: string;
  readonly timers: Timers;
  readonly #world: World;
  readonly #deathListeners: (() => void)[] = [];
  #alive = true;
  #stalledUntilMs = 0;
  /** Came while it stood still. Bounded by what the rest of the simulation sends meanwhile. */
  #backlog: (() => void)[] = [];

  constructor(world: World, name: string) {
    this.#world = world;
    this.name = name;
    const { loop } = world;
    this.timers = {
      nowMs: () => loop.nowMs(),
      timeOfDayMs: () => beganAtMs + loop.nowMs(),
      stampMs: () => beganAtMs + loop.nowMs(),
      after: (delayMs, run) => {
        let isCalledOff = false;
        const planned = loop.after(delayMs, () => this.run(() => isCalledOff || run()));
        return {
          cancel: () => {
            isCalledOff = true;
            planned.cancel();
          },
        };
      },
      every: (everyMs, run) => {
        // Those that it misses while it stands still come as one, as Node's do.
        let isDue = false;
        const tick = () => {
          isDue = false;
          run();
        };
        const planned = loop.every(everyMs, () => {
          if (!this.#alive) planned.cancel();
          if (isDue) return;
          isDue = true;
          this.run(tick);
        });
        return planned;
      },
      soon: (run) => void loop.after(0, () => this.run(run)),
      settled: (run) => void loop.after(0, () => this.run(run)),
    };
  }

  get alive(): boolean {
    return this.#alive;
  }

  /** Something happens to it, now or when it goes on; nothing when it is dead. */
  run(event: () => void): void {
    if (!this.#alive) return;
    if (this.#world.loop.nowMs() < this.#stalledUntilMs) {
      this.#backlog.push(event);
      return;
    }
    try {
      event();
    } catch (error) {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      this.#world.violate("nothing throws", `${this.name}: ${text}`);
    }
    this.#world.unsettled = true;
  }

  /** Nothing happens in it for so long, and all of it afterwards. */
  stall(ms: number): void {
    const { loop } = this.#world;
    const untilMs = loop.nowMs() + ms;
    if (!this.#alive || untilMs <= this.#stalledUntilMs) return;
    this.#stalledUntilMs = untilMs;
    loop.at(untilMs, () => {
      if (loop.nowMs() < this.#stalledUntilMs) return;
      const backlog = this.#backlog;
      this.#backlog = [];
      for (const event of backlog) loop.after(0, () => this.run(event));
    });
  }

  onDeath(listener: () => void): void {
    this.#deathListeners.push(listener);
  }

  kill(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#backlog = [];
    for (const listener of this.#deathListeners) listener();
  }
}
