/**
 * How long a thread's event loop stands still: a timer notes the time between two of its firings, on the
 * clock and as CPU time of the thread itself. The clock also counts what other processes took from a busy
 * machine; CPU time is the thread's own doing, whatever the neighbours do.
 */
import { openSync, readFileSync, readSync } from "node:fs";

export interface LoopStall {
  wallMs: number;
  cpuMs: number;
  /** How often the timer fired. */
  ticks: number;
}

export class LoopWatch {
  readonly #timer: NodeJS.Timeout;
  readonly #cpuMs = threadCpuClock();
  #longest: LoopStall = { wallMs: 0, cpuMs: 0, ticks: 0 };
  #lastWall = performance.now();
  #lastCpu = this.#cpuMs();

  constructor(periodMs: number) {
    this.#timer = setInterval(() => this.#note(), periodMs).unref();
  }

  /** The longest times since the last call; one can be of another moment than the other. */
  take(): LoopStall {
    this.#note();
    const longest = this.#longest;
    this.#longest = { wallMs: 0, cpuMs: 0, ticks: 0 };
    return { ...longest, ticks: longest.ticks - 1 };
  }

  stop(): LoopStall {
    clearInterval(this.#timer);
    return this.take();
  }

  #note(): void {
    const wall = performance.now();
    const cpu = this.#cpuMs();
    const longest = this.#longest;
    longest.wallMs = Math.max(longest.wallMs, wall - this.#lastWall);
    longest.cpuMs = Math.max(longest.cpuMs, cpu - this.#lastCpu);
    longest.ticks++;
    this.#lastWall = wall;
    this.#lastCpu = cpu;
  }
}

/**
 * A clock of the CPU time of the thread that calls this, in milliseconds. Node has none before version 24,
 * so the kernel's own books are read: exact to a tick of its scheduler where it publishes them (schedstat,
 * sched), else to the 10 ms of /proc/PID/stat. What comes before the first call does not count.
 */
export function threadCpuClock(): () => number {
  const sources: { file: string; read: (text: string) => number }[] = [
    { file: "schedstat", read: (text) => Number(text.split(" ")[0]) / 1e6 },
    { file: "sched", read: (text) => Number(/sum_exec_runtime\s*:\s*([\d.]+)/.exec(text)?.[1]) },
    {
      file: "stat",
      read: (text) => {
        const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
        return (Number(fields[11]) + Number(fields[12])) * 10;
      },
    },
  ];
  for (const { file, read } of sources) {
    const path = `/proc/thread-self/${file}`;
    if (!works(() => read(readFileSync(path, "utf8")) > 0)) continue;
    const descriptor = openSync(path, "r");
    const buffer = Buffer.alloc(4_096);
    return () => read(buffer.toString("latin1", 0, readSync(descriptor, buffer, 0, buffer.length, 0)));
  }
  throw new Error("/proc/thread-self tells no CPU time, expected a Linux with /proc");
}

function works(check: () => boolean): boolean {
  try {
    return check();
  } catch {
    return false;
  }
}
