/** The model of a simulation: a directory's, of which no weight is read, or a published one by its name. */
import { existsSync } from "node:fs";
import type { Model } from "../../checkpoint/index.js";
import { type PublishedName, published, publishedNames } from "../../models/published.js";
import type { Precision } from "../../models/quantization.js";
import { type SimulatedModel, simulatedModel } from "../../simulation/hardware/model-work.js";
import { CommandError, exitStatus } from "../errors.js";
import { type PrecisionFlags, quantizationOf } from "../precision.js";

/** @throws CommandError (bad usage) for what is neither; RelayError invalid_model for a directory without a model. */
export async function simulationModel(name: string, flags: PrecisionFlags): Promise<SimulatedModel> {
  const model = await open(name);
  return modelWork(model, {
    ...quantizationOf(flags),
    dtype: flags.dtype ?? model.dtype,
    kvType: flags.kv ?? flags.dtype ?? model.dtype,
  });
}

/** What the hardware must do for a model at a precision. */
export async function modelWork(model: Model, precision: Precision): Promise<SimulatedModel> {
  const [{ engineRows, placementModel }, { contextRowsOf }] = await Promise.all([
    import("../../coordinator/placement/model.js"),
    import("../../checkpoint/index.js"),
  ]);
  const maxRows = engineRows(model);
  return simulatedModel({
    title: model.id,
    shape: model.shape,
    storedType: model.dtype,
    precision,
    placement: placementModel(model, precision, maxRows),
    maxRows,
    contextLength: model.contextLength,
    prefix: contextRowsOf(model) > 0,
  });
}

async function open(name: string): Promise<Model> {
  if (Object.hasOwn(published, name)) {
    const { paperModel } = await import("../../checkpoint/paper-model.js");
    return paperModel(published[name as PublishedName]);
  }
  if (existsSync(name)) {
    const { openModel } = await import("../../checkpoint/index.js");
    return openModel(name);
  }
  throw new CommandError(
    `option '--model <name|dir>' argument '${name}' is neither a directory nor a published model: ` +
      `expected a directory or one of ${publishedNames.join(", ")}`,
    "invalid_configuration",
    exitStatus.badUsage,
  );
}
