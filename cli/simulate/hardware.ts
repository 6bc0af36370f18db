/** The hardware of a simulation and what is assumed of it, from flags and files. */
import { readFileSync } from "node:fs";
import { type Assumptions, defaultAssumptions } from "../../simulation/hardware/assumptions.js";
import { type Hardware, oneHost, parseGpus } from "../../simulation/hardware/hardware.js";
import { readHardware } from "../../simulation/hardware/hardware-file.js";
import { CommandError, exitStatus } from "../errors.js";
import type { SimulateFlags } from "./flags.js";

/** A description of every worker that may join has less. */
const fileBytesMax = 1024 * 1024;

export interface DescribedHardware {
  hardware: Hardware;
  assumptions: Assumptions;
}

/** @throws CommandError for a file that cannot be read; RelayError invalid_configuration for what it says. */
export async function hardwareOf(flags: SimulateFlags): Promise<DescribedHardware> {
  const described =
    flags.hardware === undefined
      ? { hardware: oneHost(parseGpus(flags.gpus!), flags.pipelines, flags.stages ?? null), assumptions: {} }
      : readHardware(await parseFile(flags.hardware));
  for (const name of ["pipelines", "stages"] as const) {
    if (flags.hardware === undefined || flags[name] === undefined) continue;
    throw new CommandError(
      `option '--${name} <n>' argument '${flags[name]}' stands beside --hardware: expected it in the file`,
      "invalid_configuration",
      exitStatus.badUsage,
    );
  }
  const { bandwidthEfficiency, computeEfficiency } = flags;
  return {
    hardware: described.hardware,
    assumptions: {
      ...defaultAssumptions,
      ...described.assumptions,
      ...(bandwidthEfficiency === undefined ? {} : { bandwidthEfficiency }),
      ...(computeEfficiency === undefined ? {} : { computeEfficiency }),
    },
  };
}

/** JSON is YAML too. */
async function parseFile(file: string): Promise<unknown> {
  const { parse } = await import("yaml");
  const text = readText(file, fileBytesMax);
  try {
    return parse(text, { maxAliasCount: 0 });
  } catch (error) {
    throw new CommandError(`${file}: ${(error as Error).message.split("\n")[0]}`, "invalid_configuration");
  }
}

/** @throws CommandError when there is no such file, or it is larger. */
export function readText(file: string, bytesMax: number): string {
  let text: Buffer;
  try {
    text = readFileSync(file);
  } catch (error) {
    throw new CommandError(`${file} cannot be read: ${(error as NodeJS.ErrnoException).code}`);
  }
  if (text.length <= bytesMax) return text.toString();
  throw new CommandError(`${file} has ${text.length} bytes: expected at most ${bytesMax}`);
}
