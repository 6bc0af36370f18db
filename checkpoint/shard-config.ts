/**
 * The config.json that tensor-parallel shards come without: sizes from the shapes of the merged tensors, the
 * rest from the family's layout. A config.json in the directory wins over it.
 */
import { RelayError } from "../common/errors.js";
import type { ParallelShards } from "./parallel-shards.js";
import type { MergedTensor } from "./tensors.js";

const dtypes: Readonly<Record<string, string>> = { F32: "float32", F16: "float16", BF16: "bfloat16" };

/** @throws RelayError invalid_model naming the tensor that is missing or has another number of dimensions. */
export function shardConfig(
  { directory, layout }: ParallelShards,
  merged: ReadonlyMap<string, MergedTensor>,
): Record<string, unknown> {
  const matrix = (name: string): MergedTensor => {
    const tensor = merged.get(name);
    if (tensor?.shape.length === 2) return tensor;
    const found = tensor ? `has shape [${tensor.shape.join(", ")}]` : "is missing";
    throw new RelayError(
      "invalid_model",
      `tensor ${name} ${found}, expected a matrix: without a config.json it tells the sizes of ${layout.title} (${directory})`,
    );
  };
  const { sizes, headDim, endTokens } = layout;
  const embedding = matrix(sizes.embedding);
  const [vocabSize, hiddenSize] = embedding.shape as [number, number];
  const layerCount = countLayers(merged);
  const positions = sizes.positions === undefined ? null : matrix(sizes.positions).shape[0]! - 1;
  return {
    model_type: layout.modelType,
    num_layers: layerCount,
    hidden_size: hiddenSize,
    // Left out where it would be no whole number: a model of another kind, which --set can describe.
    ...(hiddenSize % headDim === 0 ? { num_attention_heads: hiddenSize / headDim } : {}),
    inner_hidden_size: matrix(sizes.ffnDown.replace("{i}", "0")).shape[1],
    vocab_size: vocabSize,
    ...(positions === null ? {} : { max_sequence_length: positions }),
    torch_dtype: dtypes[embedding.dtype],
    ...layout.config,
    ...(endTokens?.vocabSize === vocabSize ? { eos_token_id: [...endTokens.ids] } : {}),
  };
}

/** One line about a directory of shards, for people. */
export function shardWarnings(
  { directory, layout, ranks }: ParallelShards,
  derived: Record<string, unknown> | null,
  unknown: readonly string[],
): string[] {
  const warnings: string[] = [];
  if (derived !== null) {
    const { num_layers: layers, hidden_size: size, vocab_size: vocabulary } = derived;
    warnings.push(
      `${directory}: no config.json; by its ${ranks.length} shards it is ${layout.title} with ${layers} layers, ` +
        `hidden size ${size} and ${vocabulary} rows of vocabulary`,
    );
  }
  if (unknown.length > 0) {
    const shown = unknown.slice(0, 5).join(", ");
    const rest = unknown.length > 5 ? `, and ${unknown.length - 5} more` : "";
    warnings.push(`${directory}: not used, as ${layout.title} has no such tensors: ${shown}${rest}`);
  }
  return warnings;
}

/** One more than the highest layer; whether each is whole is checked where its tensors are looked up. */
function countLayers(merged: ReadonlyMap<string, MergedTensor>): number {
  let count = 0;
  for (const name of merged.keys()) {
    const layer = /\.layers\.(\d+)\./.exec(name)?.[1];
    if (layer !== undefined) count = Math.max(count, Number(layer) + 1);
  }
  return count;
}
