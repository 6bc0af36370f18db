/** Runs seeds of the fault simulator: `--seed N` one of them with its trace, `--seeds N` so many from `--from`. */
import { report, runSeed } from "./run.js";

const progressEvery = 100;
const defaultSeeds = 10_000;

function numberOf(name: string, otherwise: number): number {
  const at = process.argv.indexOf(`--${name}`);
  if (at < 0) return otherwise;
  const value = Number(process.argv[at + 1]);
  if (!Number.isSafeInteger(value) || value < 0) {
    throw new Error(`--${name} ${process.argv[at + 1] ?? ""}: expected a number of 0 or more`);
  }
  return value;
}

async function main(): Promise<number> {
  if (process.argv.includes("--help")) {
    console.log("usage: main.js [--seed N] [--seeds COUNT] [--from N] [--lines N]");
    return 0;
  }
  const lines = numberOf("lines", 60);
  const one = numberOf("seed", 1);
  if (process.argv.includes("--seed")) {
    const outcome = await runSeed(one, lines);
    console.log(report(outcome));
    if (outcome.violation === null) {
      const counts = [...outcome.counts].map(([what, times]) => `${what}: ${times}`).sort();
      console.log(counts.join("\n"));
    }
    return outcome.violation === null ? 0 : 1;
  }
  const from = numberOf("from", 1);
  const seeds = numberOf("seeds", defaultSeeds);
  const failed: number[] = [];
  const totals = new Map<string, number>();
  let events = 0;
  for (let seed = from; seed < from + seeds; seed++) {
    const outcome = await runSeed(seed, lines);
    events += outcome.events;
    for (const [what, times] of outcome.counts) totals.set(what, (totals.get(what) ?? 0) + times);
    if (outcome.violation !== null) {
      failed.push(seed);
      console.log(report(outcome));
    }
    const done = seed - from + 1;
    if (done % progressEvery === 0 || done === seeds) {
      const cpuS = process.cpuUsage().user / 1e6;
      console.log(
        `${done} of ${seeds} seeds, ${failed.length} failed, ${events} events, ${cpuS.toFixed(1)} s of CPU`,
      );
    }
  }
  console.log(
    [...totals]
      .map(([what, times]) => `${what}: ${times}`)
      .sort()
      .join("\n"),
  );
  if (failed.length > 0) console.log(`failed: ${failed.join(" ")}`);
  return failed.length === 0 ? 0 : 1;
}

process.exitCode = await main();
