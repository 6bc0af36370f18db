/**
 * `make bench`: runs the benchmarks one after the other and prints one table each. Quote ratios from
 * one run, not absolutes: shared machines drift by a third.
 */
import { Command } from "commander";
import { eventLoopBench } from "./event-loop.js";
import { hopBench } from "./hop.js";
import { queueBench } from "./queue.js";
import { printTable, type Table } from "./report.js";
import { servingBench } from "./serving.js";

const benches: Record<string, () => Promise<Table>> = {
  hop: hopBench,
  queue: queueBench,
  serving: servingBench,
  "event-loop": eventLoopBench,
};

const program = new Command("bench")
  .argument("[names...]", `which of ${Object.keys(benches).join(", ")}; default: all`)
  .option("--json", "one JSON object per benchmark and line")
  .action(async (names: string[], flags: { json?: boolean }) => {
    for (const name of names.length > 0 ? names : Object.keys(benches)) {
      const bench = benches[name];
      if (bench === undefined) {
        return program.error(`unknown benchmark "${name}", expected ${Object.keys(benches).join(", ")}`, {
          exitCode: 2,
        });
      }
      const table = await bench();
      if (flags.json === true) process.stdout.write(`${JSON.stringify({ name, ...table })}\n`);
      else printTable(table);
    }
    process.exit(0);
  });
await program.parseAsync();
