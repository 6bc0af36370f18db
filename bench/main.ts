/**
 * `make bench`: runs the short benchmarks one after the other and prints one table each; the long ones
 * are commands of their own. Quote ratios from one run, not absolutes: shared machines drift by a third.
 */
import { Command, CommanderError } from "commander";
import { CommandError, exitStatus, formatFailure, statusOfFailure } from "../cli/errors.js";
import { addBatchesCommand } from "./batches.js";
import { addBatchingCommand } from "./batching.js";
import { eventLoopBench } from "./event-loop.js";
import { addFamiliesCommand } from "./families.js";
import { addGpuCommand } from "./gpu.js";
import { hopBench } from "./hop.js";
import { addKernelsCommand } from "./kernels.js";
import { addLoadCommand } from "./load.js";
import { addMemoryCommand } from "./memory.js";
import { printJson } from "./options.js";
import { addPeersCommand } from "./peers.js";
import { addQualityCommand } from "./quality.js";
import { queueBench } from "./queue.js";
import { printTable, type Table } from "./report.js";
import { addSchedulerCostCommand } from "./scheduler-cost.js";
import { servingBench } from "./serving.js";
import { addSimulateBench } from "./simulate/command.js";
import { addSimulateFleetBench } from "./simulate/fleet.js";
import { addSimulateMixedBench } from "./simulate/mixed.js";
import { addSimulatePublishedBench } from "./simulate/published.js";
import { addSlicesCommand } from "./slices.js";
import { addSpeculationCommand } from "./speculation.js";
import { addStageProfileCommand } from "./stage-profile.js";
import { addThroughputCommand } from "./throughput.js";
import { endClustersOnSignal } from "./up.js";

const benches: Record<string, () => Promise<Table>> = {
  hop: hopBench,
  queue: queueBench,
  serving: servingBench,
  "event-loop": eventLoopBench,
};

const program = new Command("bench")
  .exitOverride()
  // --json after a command's name is the command's.
  .enablePositionalOptions()
  .argument("[names...]", `short ones, of ${Object.keys(benches).join(", ")}; default: all of these`)
  .option("--json", "one JSON object per benchmark and line")
  .action(async (names: string[], flags: { json?: boolean }) => {
    for (const name of names.length > 0 ? names : Object.keys(benches)) {
      const bench = benches[name];
      if (bench === undefined) {
        const expected = Object.keys(benches).join(", ");
        const message = `unknown benchmark "${name}", expected ${expected}`;
        throw new CommandError(message, null, exitStatus.badUsage);
      }
      const table = await bench();
      if (flags.json === true) printJson({ name, ...table });
      else printTable(table);
    }
  });

addQualityCommand(program);
addKernelsCommand(program);
addGpuCommand(program);
addMemoryCommand(program);
addLoadCommand(program);
addPeersCommand(program);
addSlicesCommand(program);
addSpeculationCommand(program);
addFamiliesCommand(program);
addSchedulerCostCommand(program);
addThroughputCommand(program);
addBatchesCommand(program);
addBatchingCommand(program);
addStageProfileCommand(program);
addSimulateBench(program);
addSimulatePublishedBench(program);
addSimulateFleetBench(program);
addSimulateMixedBench(program);

endClustersOnSignal();
try {
  await program.parseAsync();
  process.exit(exitStatus.done);
} catch (error) {
  // Commander has printed its message already; its own status is 1 for every mistake.
  if (error instanceof CommanderError) {
    process.exit(error.exitCode === 0 ? exitStatus.done : exitStatus.badUsage);
  }
  process.stderr.write(`${formatFailure(error)}\n`);
  process.exit(statusOfFailure(error));
}
