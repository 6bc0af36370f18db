/**
 * The forward pass of CANON.md written a second time, from the page and not from the engine: what the
 * engine computes with rounded weights is held against this. Slow and small.
 */
import type { KvType, ModelShape, WeightFormat } from "../../../native/index.js";
import { bfloat, exp, f32, fma, half, treeSum } from "./numbers.js";
import { type RoundedMatrix, roundedProduct, roundHead, roundMatrix } from "./rounding.js";

/** Tensors by their name in ChatGLM3 checkpoints. */
export type Weights = ReadonlyMap<string, Float32Array>;

export interface CanonOptions {
  weights: WeightFormat;
  headWeights: WeightFormat;
  dtype: "float32" | "float16" | "bfloat16";
  kvType: KvType;
}

const rounders = { float32: f32, float16: half, bfloat16: bfloat };

interface Layer {
  attentionNorm: Float32Array;
  qkv: RoundedMatrix;
  qkvBias: Float32Array;
  attentionOut: RoundedMatrix;
  ffnNorm: Float32Array;
  gateUp: RoundedMatrix;
  down: RoundedMatrix;
}

export class CanonModel {
  readonly #shape: ModelShape;
  readonly #options: CanonOptions;
  readonly #embedding: Float32Array;
  readonly #layers: Layer[];
  readonly #finalNorm: Float32Array;
  readonly #head: RoundedMatrix;

  constructor(weights: Weights, shape: ModelShape, options: CanonOptions) {
    this.#shape = shape;
    this.#options = options;
    const { hiddenSize, ffnSize } = shape;
    const queries = shape.headCount * shape.headDim;
    const qkv = queries + 2 * shape.kvHeadCount * shape.headDim;
    const get = (name: string): Float32Array => {
      const values = weights.get(`transformer.${name}.weight`) ?? weights.get(`transformer.${name}`);
      if (values === undefined) throw new Error(`no tensor ${name}`);
      return values;
    };
    this.#embedding = get("embedding.word_embeddings");
    this.#layers = Array.from({ length: shape.layerCount }, (_, i) => {
      const at = (name: string) => get(`encoder.layers.${i}.${name}`);
      return {
        attentionNorm: at("input_layernorm"),
        qkv: roundMatrix(at("self_attention.query_key_value"), qkv, hiddenSize, options.weights),
        qkvBias: at("self_attention.query_key_value.bias"),
        attentionOut: roundMatrix(at("self_attention.dense"), hiddenSize, queries, options.weights),
        ffnNorm: at("post_attention_layernorm"),
        gateUp: roundMatrix(at("mlp.dense_h_to_4h"), 2 * ffnSize, hiddenSize, options.weights),
        down: roundMatrix(at("mlp.dense_4h_to_h"), hiddenSize, ffnSize, options.weights),
      };
    });
    this.#finalNorm = get("encoder.final_layernorm");
    const rows = get("output_layer").subarray(0, shape.tokenCount * hiddenSize);
    this.#head = roundMatrix(rows, shape.tokenCount, hiddenSize, options.headWeights);
  }

  /** Logits after every token of a sequence. */
  logits(ids: readonly number[]): Float32Array[] {
    const { hiddenSize } = this.#shape;
    const round = rounders[this.#options.dtype];
    let rows: Float32Array[] = ids.map((id) =>
      this.#embedding.slice(id * hiddenSize, (id + 1) * hiddenSize).map(round),
    );
    for (const layer of this.#layers) rows = this.#layer(layer, rows);
    return rows.map((row) => roundedProduct(this.#norm(row, this.#finalNorm), this.#head));
  }

  #layer(layer: Layer, rows: Float32Array[]): Float32Array[] {
    const { headCount, kvHeadCount, headDim, ffnSize } = this.#shape;
    const round = rounders[this.#options.dtype];
    const queries: Float32Array[][] = [];
    const keys: Float32Array[][] = [];
    const values: Float32Array[][] = [];
    for (const [position, row] of rows.entries()) {
      const qkv = roundedProduct(this.#norm(row, layer.attentionNorm), layer.qkv);
      for (const [i, bias] of layer.qkvBias.entries()) qkv[i] = qkv[i]! + bias;
      const heads = Array.from({ length: headCount + 2 * kvHeadCount }, (_, i) =>
        qkv.slice(i * headDim, (i + 1) * headDim),
      );
      for (const head of heads.slice(0, headCount + kvHeadCount)) this.#rotate(head, position);
      queries.push(heads.slice(0, headCount));
      keys.push(heads.slice(headCount, headCount + kvHeadCount).map((head) => this.#store(head)));
      values.push(heads.slice(headCount + kvHeadCount).map((head) => this.#store(head)));
    }
    return rows.map((row, position) => {
      const attended = new Float32Array(headCount * headDim);
      for (let head = 0; head < headCount; head++) {
        const kvHead = Math.floor(head / (headCount / kvHeadCount));
        const out = this.#attend(
          queries[position]![head]!,
          keys.slice(0, position + 1).map((all) => all[kvHead]!),
          values.slice(0, position + 1).map((all) => all[kvHead]!),
        );
        attended.set(out, head * headDim);
      }
      const delta = roundedProduct(attended, layer.attentionOut);
      const a = row.map((x, i) => x + delta[i]!);
      const gateUp = roundedProduct(this.#norm(a, layer.ffnNorm), layer.gateUp);
      const gated = gateUp.subarray(0, ffnSize).map((g, i) => {
        return f32(f32(g / f32(1 + exp(f32(0 - g)))) * gateUp[ffnSize + i]!);
      });
      const down = roundedProduct(gated, layer.down);
      return a.map((x, i) => round(f32(x + down[i]!)));
    });
  }

  #norm(x: Float32Array, weight: Float32Array): Float32Array {
    const lanes = new Float32Array(16);
    for (const [i, value] of x.entries()) lanes[i % 16] = fma(value, value, lanes[i % 16]!);
    const mean = f32(treeSum(lanes) / x.length);
    const inverse = f32(1 / f32(Math.sqrt(f32(mean + f32(this.#shape.normEps)))));
    return x.map((value, i) => f32(value * inverse) * weight[i]!);
  }

  #rotate(head: Float32Array, position: number): void {
    const { ropeDim, ropeBase, ropePositionDivisor } = this.#shape;
    for (let i = 0; i < ropeDim; i += 2) {
      const angle = (position / ropePositionDivisor) * ropeBase ** (-i / ropeDim);
      const cos = f32(Math.cos(angle));
      const sin = f32(Math.sin(angle));
      const x = head[i]!;
      const y = head[i + 1]!;
      head[i] = fma(x, cos, -f32(y * sin));
      head[i + 1] = fma(y, cos, f32(x * sin));
    }
  }

  #store(head: Float32Array): Float32Array {
    const { kvType } = this.#options;
    return kvType === "int8" ? roundHead(head) : head.map(rounders[kvType]);
  }

  #attend(query: Float32Array, keys: Float32Array[], values: Float32Array[]): Float32Array {
    const { headDim } = this.#shape;
    const scale = f32(1 / f32(Math.sqrt(headDim)));
    const out = new Float32Array(headDim);
    const sums = new Float32Array(16);
    let max = Number.NEGATIVE_INFINITY;
    for (let begin = 0; begin < keys.length; begin += 16) {
      const visible = Math.min(16, keys.length - begin);
      const scores = Array.from({ length: visible }, (_, j) => {
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot = fma(query[d]!, keys[begin + j]![d]!, dot);
        return f32(dot * scale);
      });
      const newMax = Math.max(max, ...scores);
      const correction = exp(f32(max - newMax));
      const weights = Array.from({ length: 16 }, (_, j) => (j < visible ? exp(f32(scores[j]! - newMax)) : 0));
      for (let j = 0; j < 16; j++) sums[j] = fma(sums[j]!, correction, weights[j]!);
      for (let d = 0; d < headDim; d++) {
        let sum = f32(out[d]! * correction);
        for (let j = 0; j < visible; j++) sum = fma(weights[j]!, values[begin + j]![d]!, sum);
        out[d] = sum;
      }
      max = newMax;
    }
    const total = treeSum(sums);
    return out.map((x) => x / total);
  }
}
