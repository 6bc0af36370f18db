/** Where the weights of a stage lie, by the card's names: the weight fields of the engine's StageConfig. */
import { RelayError } from "../common/errors.js";
import type { ModelCard, TensorNames } from "../models/card.js";
import { type DType, ffnInputs, type ModelShape, qkvRows } from "../models/shape.js";
import { type Config, configSwitch, denseLayerCount } from "./config.js";
import type { PrefixEncoder } from "./prefix-encoder.js";
import { type MergedTensor, weightType } from "./tensors.js";

/** Structurally the engine's TensorSource, LayerTensors and the weight fields of its StageConfig. */
export interface TensorSource {
  file: string;
  byteOffset: number;
  byteLength: number;
  dtype: DType;
  shape: number[];
}

/**
 * Tensors of one layer. Matrices are [out, in]. The tensors of a list lie one below the other, or, where
 * each has all rows, side by side. null: the family has no such tensor.
 */
export interface LayerTensors {
  attentionNorm: TensorSource;
  attentionNormBias: TensorSource | null;
  /** Rows q | k | v. */
  qkvWeight: TensorSource[];
  qkvBias: TensorSource[] | null;
  /** RMSNorm of every head, [headDim]. */
  queryNorm: TensorSource | null;
  keyNorm: TensorSource | null;
  attentionOut: TensorSource[];
  attentionOutBias: TensorSource[] | null;
  /** Norm of what attention gives, before it is added to the residual stream. */
  attentionOutNorm: TensorSource | null;
  ffnNorm: TensorSource;
  ffnNormBias: TensorSource | null;
  /** The two halves of LayerForm.ffn one below the other. In a layer with experts: of the shared one. */
  ffnUp: TensorSource[];
  ffnUpBias: TensorSource[] | null;
  ffnDown: TensorSource[];
  ffnDownBias: TensorSource[] | null;
  /** Norm of what the feed-forward part gives. */
  ffnOutNorm: TensorSource | null;
  /** [experts, hidden], and what is added to an expert's score when it is chosen. null: no experts. */
  router: { weight: TensorSource; bias: TensorSource } | null;
  experts: { up: TensorSource[]; down: TensorSource[] }[];
}

/** A linear layer of a prefix encoder. */
export interface PrefixLinear {
  weight: TensorSource;
  bias: TensorSource;
}

/**
 * A P-Tuning v2 prefix encoder: rows of the embedding, or out(tanh(hidden(row))), are keys and values of
 * all layers in front of every sequence, [length, 2 * layers * KV columns].
 */
export interface PrefixTensors {
  length: number;
  embedding: TensorSource;
  hidden: PrefixLinear | null;
  out: PrefixLinear | null;
}

export interface StageTensors {
  layers: LayerTensors[];
  embedding: TensorSource[] | null;
  positionEmbedding: TensorSource | null;
  blockPositionEmbedding: TensorSource | null;
  finalNorm: TensorSource | null;
  finalNormBias: TensorSource | null;
  head: TensorSource[] | null;
  prefix: PrefixTensors | null;
}

export interface StageRange {
  layerBegin: number;
  /** Exclusive. */
  layerEnd: number;
  embed: boolean;
  head: boolean;
}

/** What of a model is needed to find its tensors. */
export interface TensorOwner {
  directory: string;
  card: ModelCard;
  shape: ModelShape;
  config: Config;
  merged: ReadonlyMap<string, MergedTensor>;
  prefixEncoder: PrefixEncoder | null;
}

/** @throws RelayError invalid_model for a tensor that is missing, of another shape or of another type. */
export function stageTensors(model: TensorOwner, range: StageRange): StageTensors {
  const { hiddenSize, vocabSize, maxPositions } = model.shape;
  const names: TensorNames = model.card.tensors;
  const finder = new TensorFinder(model);
  // One row more than positions: the block position of what follows the context begins at one. A table for
  // more positions than are served is no harm.
  const positions = (name: string | undefined) =>
    range.embed && name !== undefined
      ? finder.one(name, Math.max(maxPositions + 1, finder.rows(name)), hiddenSize)
      : null;
  const last = (name: string | undefined, ...sizes: number[]) =>
    range.head && name !== undefined ? finder.one(name, ...sizes) : null;
  const head = finder.has(names.head) ? names.head : (names.headFallback ?? names.head);
  const layers: LayerTensors[] = [];
  for (let layer = range.layerBegin; layer < range.layerEnd; layer++) {
    layers.push(layerTensors(model, finder, layer));
  }
  return {
    layers,
    embedding: range.embed ? finder.parts(names.embedding, vocabSize, hiddenSize) : null,
    positionEmbedding: positions(names.positionEmbedding),
    blockPositionEmbedding: positions(names.blockPositionEmbedding),
    finalNorm: last(names.finalNorm, hiddenSize),
    finalNormBias: last(names.finalNormBias, hiddenSize),
    head: range.head ? finder.parts(head, vocabSize, hiddenSize) : null,
    prefix: prefixTensors(model.prefixEncoder),
  };
}

function prefixTensors(encoder: PrefixEncoder | null): PrefixTensors | null {
  if (encoder === null) return null;
  const { length, embedding, projection } = encoder;
  return { length, embedding, hidden: projection?.hidden ?? null, out: projection?.out ?? null };
}

function layerTensors(model: TensorOwner, finder: TensorFinder, layer: number): LayerTensors {
  const { card, shape, config, directory } = model;
  const { hiddenSize, headCount, kvHeadCount, headDim, form, experts } = shape;
  const names = card.tensors.layer;
  const { switches = {} } = card;
  const has = (field: string | undefined) => field === undefined || configSwitch(config, field, directory);

  const at = (name: string) => name.replace("{i}", String(layer));
  const one = (name: string, ...sizes: number[]) => finder.one(at(name), ...sizes);
  const optional = (name: string | undefined, size = hiddenSize) =>
    name === undefined ? null : one(name, size);
  const list = (name: string | undefined, ...sizes: number[]) =>
    name === undefined ? null : finder.parts(at(name), ...sizes);
  /** One tensor with all rows, or one for each of `rows`. */
  const stacked = (patterns: readonly string[], rows: number[], ...columns: number[]) =>
    finder.stacked(patterns.map(at), rows, columns);

  const qkvParts = [headCount, kvHeadCount, kvHeadCount].map((heads) => heads * headDim);
  const qkv = (patterns: readonly string[], ...columns: number[]) => {
    if (names.qkvRows === "blocks") return stacked(patterns, qkvParts, ...columns);
    return headwise(finder.parts(at(patterns[0]!), qkvRows(shape), ...columns), headCount, headDim);
  };
  const routed = experts !== null && layer >= denseLayerCount(config, card, directory);
  const expertNames = routed ? names.experts : undefined;
  const ffnSize = routed ? experts.sharedFfnSize : shape.ffnSize;
  const halves = Array.from({ length: ffnInputs(form) }, () => ffnSize);
  return {
    attentionNorm: one(names.attentionNorm, hiddenSize),
    attentionNormBias: optional(names.attentionNormBias),
    qkvWeight: qkv(names.qkvWeight, hiddenSize),
    qkvBias: names.qkvBias && has(switches.qkvBias) ? qkv(names.qkvBias) : null,
    queryNorm: has(switches.headNorms) ? optional(names.queryNorm, headDim) : null,
    keyNorm: has(switches.headNorms) ? optional(names.keyNorm, headDim) : null,
    attentionOut: finder.parts(at(names.attentionOut), hiddenSize, headCount * headDim),
    attentionOutBias: list(names.attentionOutBias, hiddenSize),
    attentionOutNorm: optional(names.attentionOutNorm),
    ffnNorm: one(names.ffnNorm, hiddenSize),
    ffnNormBias: optional(names.ffnNormBias),
    ffnUp: stacked(expertNames?.sharedUp ?? names.ffnUp, halves, hiddenSize),
    ffnUpBias: names.ffnUpBias ? stacked(names.ffnUpBias, halves) : null,
    ffnDown: finder.parts(at(expertNames?.sharedDown ?? names.ffnDown), hiddenSize, ffnSize),
    ffnDownBias: list(names.ffnDownBias, hiddenSize),
    ffnOutNorm: optional(names.ffnOutNorm),
    ...(expertNames && experts
      ? {
          router: {
            weight: one(expertNames.router, experts.count, hiddenSize),
            bias: one(expertNames.routerBias, experts.count),
          },
          experts: Array.from({ length: experts.count }, (_, expert) => {
            const of = (name: string) => at(name).replace("{e}", String(expert));
            const sizes = [experts.ffnSize, experts.ffnSize];
            return {
              up: finder.stacked(expertNames.up.map(of), sizes, [hiddenSize]),
              down: finder.parts(of(expertNames.down), hiddenSize, experts.ffnSize),
            };
          }),
        }
      : { router: null, experts: [] }),
  };
}

/** Rows q | k | v of each head in turn -> those of all heads in blocks. */
function headwise(parts: TensorSource[], headCount: number, headDim: number): TensorSource[] {
  return [0, 1, 2].flatMap((which) =>
    Array.from({ length: headCount }, (_, head) =>
      rowRange(parts, (3 * head + which) * headDim, headDim),
    ).flat(),
  );
}

/** Rows [begin, begin + count) of tensors that lie one below the other. */
function rowRange(parts: TensorSource[], begin: number, count: number): TensorSource[] {
  const found: TensorSource[] = [];
  let first = 0;
  for (const part of parts) {
    const rows = part.shape[0]!;
    const from = Math.max(begin, first);
    const to = Math.min(begin + count, first + rows);
    if (from < to) {
      const rowBytes = part.byteLength / rows;
      found.push({
        ...part,
        byteOffset: part.byteOffset + (from - first) * rowBytes,
        byteLength: (to - from) * rowBytes,
        shape: [to - from, ...part.shape.slice(1)],
      });
    }
    first += rows;
  }
  return found;
}

class TensorFinder {
  constructor(readonly model: TensorOwner) {}

  has(name: string): boolean {
    return this.model.merged.has(name);
  }

  /** 0 for one that is missing. */
  rows(name: string): number {
    return this.model.merged.get(name)?.shape[0] ?? 0;
  }

  /** A tensor of this shape, in as many pieces as it lies. */
  parts(name: string, ...expected: number[]): TensorSource[] {
    const { merged, directory } = this.model;
    const tensor = merged.get(name);
    if (!tensor) throw new RelayError("invalid_model", `missing tensor ${name} in ${directory}`);
    const { shape, parts } = tensor;
    if (shape.length !== expected.length || shape.some((size, axis) => size !== expected[axis])) {
      throw new RelayError(
        "invalid_model",
        `tensor ${name} has shape [${shape.join(", ")}], expected [${expected.join(", ")}] (${parts[0]!.file})`,
      );
    }
    return parts.map((part) => {
      const { file, byteOffset, byteLength, shape } = part;
      return { file, byteOffset, byteLength, dtype: weightType(part), shape };
    });
  }

  /** A tensor that is in one piece in every layout. */
  one(name: string, ...expected: number[]): TensorSource {
    const found = this.parts(name, ...expected);
    if (found.length === 1) return found[0]!;
    throw new RelayError("invalid_model", `tensor ${name} is in ${found.length} pieces, expected one`);
  }

  /** One tensor with all rows, or one for each of `rows`. */
  stacked(names: string[], rows: number[], columns: number[]): TensorSource[] {
    const sizes = names.length === 1 ? [rows.reduce((sum, size) => sum + size, 0)] : rows;
    const found = names.map((name, i) => this.parts(name, sizes[i]!, ...columns));
    const types = found.map(([part]) => part!.dtype);
    const other = types.findIndex((dtype) => dtype !== types[0]);
    if (other < 0) return found.flat();
    throw new RelayError(
      "invalid_model",
      `tensor ${names[0]} is ${types[0]} and ${names[other]} is ${types[other]}, expected one type (${found[0]![0]!.file})`,
    );
  }
}

/** All tensors of a layer. */
export function layerSources({ router, experts, ...others }: LayerTensors): TensorSource[] {
  const routed = experts.flatMap(({ up, down }) => [...up, ...down]);
  const all = [...Object.values(others).flat(), ...(router ? [router.weight, router.bias] : []), ...routed];
  return all.filter((source): source is TensorSource => source !== null);
}

/** What a stage holds beside layers, because it is the first or the last. */
export function endSources(stage: StageTensors, end: "first" | "last"): TensorSource[] {
  const { embedding, positionEmbedding, blockPositionEmbedding, finalNorm, finalNormBias, head } = stage;
  const first = [...(embedding ?? []), positionEmbedding, blockPositionEmbedding];
  const last = [finalNorm, finalNormBias, ...(head ?? [])];
  return (end === "first" ? first : last).filter((source) => source !== null);
}

/** All tensors of a stage. */
export function stageSources(stage: StageTensors): TensorSource[] {
  return [...endSources(stage, "first"), ...stage.layers.flatMap(layerSources), ...endSources(stage, "last")];
}
