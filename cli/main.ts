#!/usr/bin/env node
/** The `glm-relay` command: reads the command line, hands over to one file per subcommand. */
import { Command, CommanderError } from "commander";
import { softwareVersion } from "../common/package.js";
import { addBatchCommand } from "./batch/command.js";
import { addChatCommand } from "./chat.js";
import { addCoordinatorCommand } from "./coordinator.js";
import { exitStatus, formatFailure, statusOfFailure } from "./errors.js";
import { addSimulateCommand } from "./simulate.js";
import { addStatusCommand } from "./status.js";
import { addUpCommand } from "./up.js";
import { addWorkerCommand } from "./worker.js";

const program = new Command("glm-relay")
  .description("Serves GLM language models through a pipeline of worker processes.")
  .version(softwareVersion)
  .showHelpAfterError("(--help shows what is possible)")
  // Subcommands inherit both settings, so they stand before the first of them.
  .exitOverride();

addUpCommand(program);
addCoordinatorCommand(program);
addWorkerCommand(program);
addChatCommand(program);
addBatchCommand(program);
addSimulateCommand(program);
addStatusCommand(program);

try {
  await program.parseAsync();
  process.exitCode ??= exitStatus.done;
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has printed its message already; its own status is 1 for every mistake.
    process.exitCode = error.exitCode === 0 ? exitStatus.done : exitStatus.badUsage;
  } else {
    process.stderr.write(`${formatFailure(error)}\n`);
    // Whatever a failed start has left open must not keep the process alive.
    process.exit(statusOfFailure(error));
  }
}
