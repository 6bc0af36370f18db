/** What the commands say about a batch. */
import type { BatchObject } from "../../coordinator/batches/batch.js";
import { exitStatus } from "../errors.js";
import { formatCount } from "../text.js";
import { type CommonFlags, commandLine } from "./options.js";
import type { Results } from "./results.js";
import { formatSummary, summarize } from "./summary.js";

export const tell = (line: string) => process.stderr.write(`${line}\n`);
export const printJson = (value: object) => process.stdout.write(`${JSON.stringify(value)}\n`);
export const nowS = () => Date.now() / 1_000;

/** Tells what a batch has come to, and ends with 1 when not every line was answered well. */
export function conclude(
  batch: BatchObject,
  place: string,
  results: Results | null,
  flags: CommonFlags,
): void {
  for (const [code, { count, customId, message }] of results?.failures ?? []) {
    tell(`${formatCount(count)} failed with ${code}, the first is ${JSON.stringify(customId)}: ${message}`);
  }
  tellProblems(batch, place);
  const summary = summarize(batch, nowS());
  if (!flags.json) tell(formatSummary(summary));
  if (batch.status !== "completed" || summary.failed > 0) process.exitCode = exitStatus.failed;
}

/**
 * The coordinator tells a bounded number of them.
 * @param place What stands in front of the number of a line.
 */
export function tellProblems(batch: BatchObject, place: string): void {
  for (const { line, message } of batch.errors?.data ?? []) {
    tell(line === null ? message : `${place}${line}: ${message}`);
  }
}

export function tellGoesOn(signal: NodeJS.Signals, again: string, id: string, flags: CommonFlags): void {
  tell(`${signal}: the batch goes on without this command`);
  tell(`this continues to watch it:\n  ${again}`);
  tell(`this cancels it:\n  ${commandLine("cancel", [id], { url: flags.url })}`);
}
