/** CPU time that another process has used, by the kernel's books. */
import { readFileSync } from "node:fs";

/** Of the ticks in /proc; Linux shows 100 per second whatever its own are. */
const tickMs = 10;

export interface CpuTimes {
  /** Of all threads. */
  allMs: number;
  /** Of the main thread alone, which no other can take work from. */
  mainMs: number;
}

/** Since the process began, to 10 ms. */
export function cpuTimesOf(pid: number): CpuTimes {
  return { allMs: ticksIn(`/proc/${pid}/stat`), mainMs: ticksIn(`/proc/${pid}/task/${pid}/stat`) };
}

/** User and system time. */
function ticksIn(file: string): number {
  const text = readFileSync(file, "utf8");
  // The command's name stands in brackets and may hold spaces.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * tickMs;
}
