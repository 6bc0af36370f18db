/** The command line as commander sees it: one file per subcommand adds itself. */
import { Command } from "commander";
import { softwareVersion } from "../common/package.js";
import { addBatchCommand } from "./batch/command.js";
import { addChatCommand } from "./chat.js";
import { addCoordinatorCommand } from "./coordinator.js";
import { addSimulateCommand } from "./simulate.js";
import { addStatusCommand } from "./status.js";
import { addUpCommand } from "./up.js";
import { addWorkerCommand } from "./worker.js";

export function createProgram(): Command {
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
  return program;
}
