/** Time as an argument, so that tests and the simulator can hold it. */
export interface Clock {
  /** Milliseconds from an arbitrary start; never goes back. */
  nowMs(): number;
}

export const systemClock: Clock = { nowMs: () => performance.now() };

/** Something that was planned and may be called off; without effect once it has happened. */
export interface Timer {
  cancel(): void;
}

/** All that a state machine needs of time. */
export interface Timers extends Clock {
  /** Time of day, milliseconds since 1970; it may be set back. */
  timeOfDayMs(): number;
  /** The same with a fraction, and never going back within a process: whoever came first has the smaller one. */
  stampMs(): number;
  /**
   * @param delayMs At most 2 ** 31 - 1.
   * @param keepsAlive Whether the process waits for it before it ends; default true.
   */
  after(delayMs: number, run: () => void, keepsAlive?: boolean): Timer;
  /** Does not keep the process alive. */
  every(everyMs: number, run: () => void): Timer;
  /** After the events that wait now. */
  soon(run: () => void): void;
  /** When no promise is left that could go on. */
  settled(run: () => void): void;
}

export const systemTimers: Timers = {
  ...systemClock,
  timeOfDayMs: () => Date.now(),
  stampMs: () => performance.timeOrigin + performance.now(),
  after: (delayMs, run, keepsAlive = true) => {
    const timer = setTimeout(run, delayMs);
    if (!keepsAlive) timer.unref();
    return { cancel: () => clearTimeout(timer) };
  },
  every: (everyMs, run) => {
    const timer = setInterval(run, everyMs).unref();
    return { cancel: () => clearInterval(timer) };
  },
  soon: (run) => {
    setImmediate(run);
  },
  // Ticks come when no promise is left.
  settled: (run) => queueMicrotask(() => process.nextTick(run)),
};
