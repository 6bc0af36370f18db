/** Readers of the values that only `simulate` has: lengths, times, failures. */
import { InvalidArgumentError } from "commander";
import type { Length } from "../../simulation/hardware/load.js";
import { integer } from "../options.js";

/** The longest context of any GLM. */
const tokensMax = 2 ** 20;
const tokens = integer(1, tokensMax);

/** "256", "64..512", "exp:256". */
export function length(text: string): Length {
  const range = /^(\d+)\.\.(\d+)$/.exec(text);
  if (range !== null) {
    const [least, most] = [tokens(range[1]!), tokens(range[2]!)];
    if (least <= most) return { kind: "uniform", least, most };
    throw new InvalidArgumentError("Expected LEAST..MOST, for example 64..512.");
  }
  const exponential = /^exp:(\d+)$/.exec(text);
  if (exponential !== null) return { kind: "exponential", mean: tokens(exponential[1]!) };
  if (/^\d+$/.test(text)) return { kind: "fixed", tokens: tokens(text) };
  throw new InvalidArgumentError("Expected tokens: N, LEAST..MOST, or exp:MEAN for exponential lengths.");
}

const unitsMs: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 };

/** "30s", "500ms", "2m", "1h", as ms. */
export function duration(text: string): number {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)$/.exec(text);
  if (match !== null) return Number(match[1]) * unitsMs[match[2]!]!;
  throw new InvalidArgumentError("Expected a time such as 500ms, 30s, 2m or 1h.");
}

/** "10s..15s", as ms. */
export function span(text: string): { fromMs: number; toMs: number } {
  const [from, to, ...more] = text.split("..");
  if (from !== undefined && to !== undefined && more.length === 0) {
    const read = { fromMs: duration(from), toMs: duration(to) };
    if (read.fromMs < read.toMs) return read;
  }
  throw new InvalidArgumentError("Expected FROM..TO, for example 10s..15s.");
}

/** "never", or a time. */
export const durationOrNever = (text: string): number | null => (text === "never" ? null : duration(text));

export interface KillFlag {
  worker: number;
  atMs: number;
}

/** Failures that one simulation may have. */
const killsMax = 64;

/** "worker2@30s", added to those before. */
export function kill(text: string, earlier: readonly KillFlag[] = []): KillFlag[] {
  const match = /^worker(\d{1,4})@(.+)$/.exec(text);
  if (match === null) throw new InvalidArgumentError("Expected workerN@TIME, for example worker2@30s.");
  if (earlier.length === killsMax) throw new InvalidArgumentError(`Expected at most ${killsMax} failures.`);
  return [...earlier, { worker: Number(match[1]), atMs: duration(match[2]!) }];
}

/** A number within [min, max], written in decimal digits. */
export function decimal(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,9}(\.\d{1,9})?$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    throw new InvalidArgumentError(`Expected a number from ${min} to ${max}.`);
  };
}

/** "interactive", "batch", or the share of interactive requests, "interactive:0.3". @returns That share. */
export function classMix(text: string): number {
  if (text === "interactive") return 1;
  if (text === "batch") return 0;
  const match = /^interactive:(\d(?:\.\d{1,6})?)$/.exec(text);
  const share = match === null ? Number.NaN : Number(match[1]);
  if (share >= 0 && share <= 1) return share;
  throw new InvalidArgumentError(
    "Expected interactive, batch, or interactive:SHARE with a share from 0 to 1.",
  );
}
