/**
 * Recognizes weights in forms that are not read, quantized ones above all, and says what they are and what to
 * use instead. Without it they would fail later, as a missing tensor or as one of another shape.
 */
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { isObject } from "./json.js";
import { hasWeights, type MergedTensor } from "./tensors.js";

const instead = "expected the unquantized checkpoint (--quantization int4 rounds it when it is loaded)";

/** For people, by the "quant_method" of config.json. */
const methods: Readonly<Record<string, string>> = {
  gptq: "GPTQ",
  awq: "AWQ",
  bitsandbytes: "bitsandbytes",
  fp8: "FP8",
};

/** @throws RelayError invalid_model for a GGUF file in place of a directory. */
export function refuseModelFile(path: string): void {
  if (isGguf(path)) fail(path, "is a GGUF file, which cannot be read yet");
}

/** @throws RelayError invalid_model for a directory whose only weights are GGUF files. */
export function refuseDirectory(directory: string): void {
  if (hasWeights(directory)) return;
  const name = readdirSync(directory).sort().find(isGguf);
  if (name !== undefined) fail(join(directory, name), "is a GGUF file, which cannot be read yet");
}

/** @throws RelayError invalid_model for a config.json that announces quantized weights. */
export function refuseConfig(config: Readonly<Record<string, unknown>>, directory: string): void {
  const { quantization_config: settings, quantization_bit: bits } = config;
  const path = join(directory, "config.json");
  if (isObject(settings)) {
    const method = settings.quant_method;
    const known = typeof method === "string" && Object.hasOwn(methods, method) ? methods[method] : undefined;
    const by = known ?? (method === undefined ? "another program" : printValue(method));
    fail(path, `has a "quantization_config": the weights are quantized by ${by}, which cannot be read yet`);
  }
  if (typeof bits === "number" && bits !== 0) {
    fail(
      path,
      `has "quantization_bit" as ${bits}: the weights are quantized by the model's authors, which cannot be read yet`,
    );
  }
}

/** @throws RelayError invalid_model for tensors that only quantized checkpoints have. */
export function refuseTensors(merged: ReadonlyMap<string, MergedTensor>): void {
  for (const { name, dtype, parts } of merged.values()) {
    const { file } = parts[0]!;
    if (name.endsWith(".qweight")) {
      fail(file, `has tensor ${name}: weights quantized by GPTQ or AWQ, which cannot be read yet`);
    }
    if (dtype === "I8" && (name.endsWith(".weight") || merged.has(`${name}_scale`))) {
      fail(file, `has tensor ${name} of type I8: quantized weights, which cannot be read yet`);
    }
  }
}

const isGguf = (name: string) => name.toLowerCase().endsWith(".gguf");

function fail(where: string, problem: string): never {
  throw new RelayError("invalid_model", `${where} ${problem}; ${instead}`);
}
