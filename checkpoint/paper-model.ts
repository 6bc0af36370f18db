/**
 * A model as it would be opened, of a checkpoint that is not there: the tensors that its card names lie one
 * after the other in a file that nobody reads. For plans of models that no disk here holds.
 */

import { cardFor } from "../models/index.js";
import type { PublishedModel } from "../models/published.js";
import { dtypeBytes } from "../models/shape.js";
import { type CardTensor, cardTensors, parametersOf, product } from "./card-tensors.js";
import { configDtype, shapeFrom } from "./config.js";
import {
  endSources,
  layerSources,
  type MergedTensor,
  type Model,
  stageTensors,
  type TensorEntry,
} from "./index.js";

const typeNames = { float32: "F32", float16: "F16", bfloat16: "BF16" };

/** @throws RelayError invalid_model when the loader would refuse the config, or miss or doubt a tensor. */
export function paperModel({ title, config }: PublishedModel): Model {
  const directory = title;
  const card = cardFor({ directory, config, tokenizerConfig: null, hasFile: () => false });
  const shape = shapeFrom(config, card, null, directory);
  const list = cardTensors(card, config);
  const tensors = layOut(list, directory);
  const merged = new Map([...tensors].map(([name, entry]) => [name, whole(entry)]));
  const owner = { directory, card, shape, config, tensors, merged, prefixEncoder: null };
  const all = stageTensors(owner, { layerBegin: 0, layerEnd: shape.layerCount, embed: true, head: true });
  const bytes = (sources: { byteLength: number }[]) =>
    sources.reduce((sum, { byteLength }) => sum + byteLength, 0);
  return {
    ...owner,
    id: title,
    contextLength: shape.maxPositions,
    stopTokens: [],
    sampling: card.sampling,
    dtype: configDtype(config, card, directory) ?? "float16",
    prefixLength: 0,
    prefixModel: null,
    warnings: [],
    fingerprint: "",
    parameterCount: parametersOf(list),
    layerBytes: all.layers.map((layer) => bytes(layerSources(layer))),
    embeddingBytes: bytes(endSources(all, "first")),
    headBytes: bytes(endSources(all, "last")),
  };
}

function layOut(list: readonly CardTensor[], file: string): Map<string, TensorEntry> {
  const tensors = new Map<string, TensorEntry>();
  let byteOffset = 0;
  for (const { name, sizes, dtype } of list) {
    const byteLength = product(sizes) * dtypeBytes(dtype);
    tensors.set(name, { name, file, byteOffset, byteLength, dtype: typeNames[dtype], shape: sizes });
    byteOffset += byteLength;
  }
  return tensors;
}

function whole(entry: TensorEntry): MergedTensor {
  const { name, dtype, shape } = entry;
  return { name, dtype, shape, axis: 0, parts: [entry] };
}
