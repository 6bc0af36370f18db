/** A small model with more layers and a longer context than its fixture has: the fixture's layers over again. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openModel } from "../../checkpoint/index.js";
import { type TensorData, writeSafetensors } from "../../checkpoint/safetensors-writer.js";

const layerName = /\.layers\.(\d+)\./;

/**
 * Writes config.json and model.safetensors of the deeper model.
 * @param fixture Directory of a model whose positions need no table.
 * @param directory An existing one.
 */
export async function writeDeeperModel(
  fixture: string,
  directory: string,
  layerCount: number,
  contextLength: number,
): Promise<void> {
  const config = JSON.parse(readFileSync(join(fixture, "config.json"), "utf8")) as Record<string, unknown>;
  const changed = { ...config, num_layers: layerCount, max_sequence_length: contextLength };
  writeFileSync(join(directory, "config.json"), JSON.stringify(changed));
  const { tensors, shape: modelShape } = await openModel(fixture);
  const list: TensorData[] = [];
  for (const { name, file, byteOffset, byteLength, dtype, shape } of tensors.values()) {
    const data = readFileSync(file).subarray(byteOffset, byteOffset + byteLength);
    const [, layer] = layerName.exec(name) ?? [];
    if (layer === undefined) {
      list.push({ name, dtype, shape, data });
      continue;
    }
    for (let to = Number(layer); to < layerCount; to += modelShape.layerCount) {
      list.push({ name: name.replace(layerName, `.layers.${to}.`), dtype, shape, data });
    }
  }
  await writeSafetensors(join(directory, "model.safetensors"), list);
}
