/** Measured times of a stage, from a file that the benchmark stage-profile wrote. */
import type { SimulatedModel } from "../../simulation/hardware/model-work.js";
import {
  ProfileTimer,
  readProfile,
  requireProfileOf,
  type StageProfile,
} from "../../simulation/hardware/profile.js";
import type { RunStage } from "../../simulation/hardware/run.js";
import type { StageTimer } from "../../simulation/hardware/timing.js";
import { CommandError } from "../errors.js";
import { readText } from "./hardware.js";

/** Some hundred numbers. */
const fileBytesMax = 1024 * 1024;

/** @throws CommandError, RelayError invalid_configuration when the file is none, or that of another model. */
export async function profileOf(file: string, model: SimulatedModel): Promise<StageProfile> {
  let value: unknown;
  try {
    value = JSON.parse(readText(file, fileBytesMax));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new CommandError(`${file}: ${error.message}`, "invalid_configuration");
  }
  const profile = readProfile(value);
  requireProfileOf(profile, model.shape);
  return profile;
}

export function profileTimer(
  profile: StageProfile,
  model: SimulatedModel,
): (stage: Omit<RunStage, "timer">) => StageTimer {
  return ({ layers }) => new ProfileTimer(profile, layers, model);
}
