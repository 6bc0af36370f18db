/** Tables of the benchmarks and the statistics in them. */
import { cpus } from "node:os";
import CliTable from "cli-table3";

export interface Table {
  title: string;
  head: string[];
  rows: string[][];
}

/** Nearest-rank percentile. @param values in any order, not empty. */
export function percentile(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil((percent / 100) * sorted.length) - 1)]!;
}

/**
 * Tokens per second while all sequences decode: from when the last of them got its first token to when
 * the first of them got its last, so that no prompt and no thinning out is in it.
 * @param arrivals Per sequence the times (ms) at which its tokens came, ascending.
 */
export function decodeRate(arrivals: readonly (readonly number[])[]): number {
  const begin = Math.max(...arrivals.map((times) => times[0]!));
  const end = Math.min(...arrivals.map((times) => times.at(-1)!));
  const count = arrivals.flat().filter((time) => time > begin && time <= end).length;
  if (count === 0) throw new Error("the sequences never decoded at the same time: more tokens are needed");
  return (count * 1_000) / (end - begin);
}

export function printTable({ title, head, rows }: Table): void {
  const table = new CliTable({ head, style: { head: [], border: [] } });
  table.push(...rows);
  process.stdout.write(`\n${title}\n${processors()}\n${table.toString()}\n`);
}

/** The same for a document. */
export function printMarkdown({ title, head, rows }: Table): void {
  process.stdout.write(`\n${title}\n${processors()}\n\n${markdownTable(head, rows)}\n`);
}

/** "2 x AMD EPYC 7B13": figures mean nothing without it. */
export function processors(): string {
  const all = cpus();
  return `${all.length} x ${all[0]?.model}`;
}

/** A Markdown table whose columns line up as plain text too. */
export function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((name, column) =>
    Math.max(3, name.length, ...rows.map((row) => row[column]!.length)),
  );
  const line = (cells: readonly string[]) =>
    `| ${cells.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`;
  return [line(head), line(widths.map((width) => "-".repeat(width))), ...rows.map(line)].join("\n");
}
