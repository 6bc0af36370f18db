/** What the program makes of a container's command line and environment, without running it. */
import { createProgram } from "../../cli/program.js";

const prefix = "GLM_RELAY_";
/** Of the program, and no flag. */
const notFlags = new Set(["GLM_RELAY_LOG"]);

/**
 * The settings of `glm-relay ARGS` by attribute (`clusterListen`), read by the program's own options.
 * @throws Error for a flag or a variable that the command does not have, or a value that it refuses.
 */
export function settingsOf(args: readonly string[], env: Readonly<Record<string, string>> = {}) {
  const [name, ...rest] = args;
  const command = createProgram().commands.find((candidate) => candidate.name() === name);
  if (command === undefined) throw new Error(`no command "${name}"`);
  const variables = new Set(
    command.options.map((option) => prefix + option.name().toUpperCase().replaceAll("-", "_")),
  );
  for (const variable of Object.keys(env)) {
    if (!variable.startsWith(prefix) || notFlags.has(variable) || variables.has(variable)) continue;
    throw new Error(`${variable} is no variable of "${name}"`);
  }
  const before = { ...process.env };
  for (const variable of Object.keys(process.env)) {
    if (variable.startsWith(prefix)) delete process.env[variable];
  }
  Object.assign(process.env, env);
  try {
    const { operands, unknown } = command.parseOptions([...rest]);
    if (operands.length + unknown.length > 0) {
      throw new Error(`"${name}" does not know ${[...operands, ...unknown].join(" ")}`);
    }
    return command.opts();
  } finally {
    for (const variable of Object.keys(process.env)) delete process.env[variable];
    Object.assign(process.env, before);
  }
}
