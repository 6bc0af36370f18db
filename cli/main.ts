#!/usr/bin/env node
/** The `glm-relay` command: reads the command line, hands over to one file per subcommand. */
import { CommanderError } from "commander";
import { exitStatus, formatFailure, statusOfFailure } from "./errors.js";
import { createProgram } from "./program.js";

try {
  await createProgram().parseAsync();
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
