/**
 * Every tensor that a family's card names, with the sizes that config.json gives it: what a published
 * checkpoint holds, written down without one. The loader (checkpoint/stage-tensors.ts) decides by itself
 * what it expects, so that opening a model made of this list holds the two against each other.
 */

import type { ModelCard } from "../models/card.js";
import { type DType, ffnInputs, type ModelShape, qkvRows } from "../models/shape.js";
import { type Config, configDtype, configSwitch, denseLayerCount, shapeFrom } from "./config.js";

/** residual: what it gives is added to the residual stream. ones: the weight of a norm. */
export type TensorRole = "weight" | "residual" | "ones";

export interface CardTensor {
  name: string;
  sizes: number[];
  dtype: DType;
  role: TensorRole;
}

/** Stands for the directory in messages about config.json. */
const nowhere = "";

/**
 * In the order of the forward pass. A head that the family may leave out, because its values are those of
 * the embedding, is left out; so are layers behind the model's own, which nothing computes.
 * @throws RelayError invalid_model for a config that the loader would refuse.
 */
export function cardTensors(card: ModelCard, config: Config): CardTensor[] {
  const shape = shapeFrom(config, card, null, nowhere);
  const { hiddenSize, vocabSize, maxPositions, layerCount } = shape;
  const dtype = configDtype(config, card, nowhere) ?? "float16";
  const { tensors } = card;
  const list = new TensorList(dtype);
  list.add([tensors.embedding], "weight", [vocabSize], hiddenSize);
  for (const name of [tensors.positionEmbedding, tensors.blockPositionEmbedding]) {
    list.add(name && [name], "weight", [maxPositions + 1], hiddenSize);
  }
  for (let layer = 0; layer < layerCount; layer++) addLayer(list, card, config, shape, layer);
  list.add([tensors.finalNorm], "ones", [hiddenSize]);
  list.add(tensors.finalNormBias && [tensors.finalNormBias], "weight", [hiddenSize]);
  const ownHead = tensors.head !== tensors.embedding && tensors.headFallback === undefined;
  if (ownHead) list.add([tensors.head], "weight", [vocabSize], hiddenSize);
  return list.tensors;
}

function addLayer(list: TensorList, card: ModelCard, config: Config, shape: ModelShape, layer: number): void {
  const { hiddenSize, headCount, kvHeadCount, headDim, form, experts } = shape;
  const names = card.tensors.layer;
  const has = (field: string | undefined) => field === undefined || configSwitch(config, field, nowhere);
  type Names = string | readonly string[] | undefined;
  const add = (patterns: Names, role: TensorRole, rows: number[], ...columns: number[]) =>
    list.add(
      patterns && [patterns].flat().map((name) => name.replace("{i}", String(layer))),
      role,
      rows,
      ...columns,
    );

  const qkv = [headCount, kvHeadCount, kvHeadCount].map((heads) => heads * headDim);
  if (qkv.reduce((sum, rows) => sum + rows) !== qkvRows(shape)) throw new Error("rows of q, k and v");
  const halves = (size: number) => Array.from({ length: ffnInputs(form) }, () => size);
  add(names.attentionNorm, "ones", [hiddenSize]);
  add(names.attentionNormBias, "weight", [hiddenSize]);
  add(names.qkvWeight, "weight", qkv, hiddenSize);
  if (has(card.switches?.qkvBias)) add(names.qkvBias, "weight", qkv);
  if (has(card.switches?.headNorms)) {
    add(names.queryNorm, "ones", [headDim]);
    add(names.keyNorm, "ones", [headDim]);
  }
  add(names.attentionOut, "residual", [hiddenSize], headCount * headDim);
  add(names.attentionOutBias, "residual", [hiddenSize]);
  add(names.attentionOutNorm, "ones", [hiddenSize]);
  add(names.ffnNorm, "ones", [hiddenSize]);
  add(names.ffnNormBias, "weight", [hiddenSize]);
  const routed = names.experts !== undefined && layer >= denseLayerCount(config, card, nowhere);
  if (!routed || experts === null) {
    add(names.ffnUp, "weight", halves(shape.ffnSize), hiddenSize);
    add(names.ffnUpBias, "weight", halves(shape.ffnSize));
    add(names.ffnDown, "residual", [hiddenSize], shape.ffnSize);
    add(names.ffnDownBias, "residual", [hiddenSize]);
  } else {
    const { router, routerBias, up, down, sharedUp, sharedDown } = names.experts!;
    add(router, "weight", [experts.count], hiddenSize);
    // Kept in float32 whatever the type of the model.
    list.add([routerBias.replace("{i}", String(layer))], "weight", [experts.count], undefined, "float32");
    for (let expert = 0; expert < experts.count; expert++) {
      const of = (name: string) => name.replace("{e}", String(expert));
      add(up.map(of), "weight", halves(experts.ffnSize), hiddenSize);
      add(of(down), "residual", [hiddenSize], experts.ffnSize);
    }
    add(sharedUp, "weight", halves(experts.sharedFfnSize), hiddenSize);
    add(sharedDown, "residual", [hiddenSize], experts.sharedFfnSize);
  }
  add(names.ffnOutNorm, "ones", [hiddenSize]);
}

class TensorList {
  readonly tensors: CardTensor[] = [];
  readonly #dtype: DType;

  constructor(dtype: DType) {
    this.#dtype = dtype;
  }

  /**
   * @param names undefined: the family has no such tensor; one: it has all rows; else one for each of `rows`.
   * @param columns undefined: a vector.
   */
  add(
    names: readonly string[] | undefined | "",
    role: TensorRole,
    rows: readonly number[],
    columns?: number,
    dtype = this.#dtype,
  ): void {
    if (!names) return;
    const all = rows.reduce((sum, count) => sum + count, 0);
    for (const [index, name] of names.entries()) {
      const count = names.length === 1 ? all : rows[index]!;
      this.tensors.push({ name, sizes: columns === undefined ? [count] : [count, columns], dtype, role });
    }
  }
}

export const product = (sizes: readonly number[]): number => sizes.reduce((result, size) => result * size, 1);

export function parametersOf(tensors: readonly CardTensor[]): number {
  return tensors.reduce((sum, { sizes }) => sum + product(sizes), 0);
}
