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

export function printTable({ title, head, rows }: Table): void {
  const table = new CliTable({ head, style: { head: [], border: [] } });
  table.push(...rows);
  const processors = cpus();
  process.stdout.write(`\n${title}\n${processors.length} x ${processors[0]?.model}\n${table.toString()}\n`);
}
