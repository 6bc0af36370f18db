/**
 * The published models by arithmetic alone, from their sizes and from no card: how many parameters they have
 * and how many bytes the authors' own INT8 and INT4 need. The other side of a comparison with what the cards
 * and the loader say, so nothing here may come from them.
 */
import type { PublishedName } from "../models/published.js";

/** Sizes as the authors publish them. */
interface Facts {
  layers: number;
  hidden: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  ffn: number;
  vocab: number;
  /** Which linear layers have a bias. */
  bias: "all" | "qkv" | "none";
  norm: "layer" | "rms" | "sandwich";
  /** The feed-forward part has a gate. */
  gated: boolean;
  /** The head is the embedding. */
  tied: boolean;
  /** Rows of each of two tables of positions. */
  positions?: number;
  experts?: { count: number; shared: number; ffn: number; dense: number; headNorms: boolean };
  /** Weights per scale in the 4 bits that are counted, without zero points; absent: the authors' whole row. */
  int4Group?: number;
}

/** Counted once, apart from the formula: a wrong formula must not pass unseen. */
interface Published {
  parameters: number;
  /** Every parameter at two bytes, and the authors' INT8 and INT4; null: no such file was published. */
  bytes: { fp16: number; int8: number | null; int4: number | null };
  /** Parameters of the linear layers of one layer; null where layers have experts. */
  linear: number | null;
}

const sixB: Facts = {
  layers: 28,
  hidden: 4096,
  heads: 32,
  kvHeads: 2,
  headDim: 128,
  ffn: 13_696,
  vocab: 65_024,
  bias: "qkv",
  norm: "rms",
  gated: true,
  tied: false,
};
const nineB: Facts = { ...sixB, layers: 40, vocab: 151_552 };
const prefix = { bias: "all", norm: "layer", tied: true } as const;
const air: Facts = {
  ...sixB,
  layers: 46,
  heads: 96,
  kvHeads: 8,
  ffn: 10_944,
  vocab: 151_552,
  experts: { count: 128, shared: 1, ffn: 1_408, dense: 1, headNorms: false },
  int4Group: 128,
};

export const facts: Record<PublishedName, Facts> = {
  "glm-10b": {
    ...prefix,
    layers: 48,
    hidden: 4096,
    heads: 64,
    kvHeads: 64,
    headDim: 64,
    ffn: 16_384,
    vocab: 50_304,
    gated: false,
    positions: 1_025,
  },
  "glm-130b": {
    ...prefix,
    layers: 70,
    hidden: 12_288,
    heads: 96,
    kvHeads: 96,
    headDim: 128,
    ffn: 32_768,
    vocab: 150_528,
    gated: true,
  },
  "chatglm-6b": {
    ...prefix,
    layers: 28,
    hidden: 4096,
    heads: 32,
    kvHeads: 32,
    headDim: 128,
    ffn: 16_384,
    vocab: 130_528,
    gated: false,
  },
  "chatglm2-6b": sixB,
  "chatglm3-6b": sixB,
  "glm-4-9b": nineB,
  "glm-4-9b-chat": nineB,
  "glm-4-9b-chat-1m": { ...nineB, kvHeads: 4 },
  "glm-4-9b-0414": { ...nineB, norm: "sandwich" },
  "glm-4-32b-0414": {
    ...nineB,
    layers: 61,
    hidden: 6144,
    heads: 48,
    ffn: 23_040,
    bias: "none",
    norm: "sandwich",
  },
  "glm-4.5-air": air,
  "glm-4.5": {
    ...air,
    layers: 92,
    hidden: 5120,
    ffn: 12_288,
    experts: { count: 160, shared: 1, ffn: 1_536, dense: 3, headNorms: true },
  },
};

const sixBTable: Published = {
  parameters: 6_243_584_000,
  bytes: { fp16: 12_487_168_000, int8: 6_778_873_856, int4: 3_923_601_408 },
  linear: 203_948_032,
};
const nineBTable: Published = {
  parameters: 9_399_951_360,
  bytes: { fp16: 18_799_902_720, int8: 10_645_196_800, int4: 6_566_236_160 },
  linear: 203_948_032,
};

export const table: Record<PublishedName, Published> = {
  "glm-10b": {
    parameters: 9_880_682_496,
    bytes: { fp16: 19_761_364_992, int8: 10_101_227_520, int4: 5_269_389_312 },
    linear: 201_326_592,
  },
  "glm-130b": {
    parameters: 128_697_794_560,
    bytes: { fp16: 257_395_589_120, int8: 130_577_612_800, int4: 67_159_736_320 },
    linear: 1_811_939_328,
  },
  "chatglm-6b": {
    parameters: 6_173_286_400,
    bytes: { fp16: 12_346_572_800, int8: 6_711_492_608, int4: 3_892_920_320 },
    linear: 201_326_592,
  },
  "chatglm2-6b": sixBTable,
  "chatglm3-6b": sixBTable,
  "glm-4-9b": nineBTable,
  "glm-4-9b-chat": nineBTable,
  "glm-4-9b-chat-1m": {
    parameters: 9_483_857_920,
    bytes: { fp16: 18_967_715_840, int8: 10_729_164_800, int4: 6_608_261_120 },
    linear: 206_045_184,
  },
  "glm-4-9b-0414": {
    parameters: 9_400_279_040,
    bytes: { fp16: 18_800_558_080, int8: 10_645_852_160, int4: 6_566_891_520 },
    linear: 203_948_032,
  },
  "glm-4-32b-0414": {
    parameters: 32_566_081_536,
    bytes: { fp16: 65_132_163_072, int8: 34_437_790_720, int4: 19_086_638_080 },
    linear: 503_316_480,
  },
  "glm-4.5-air": {
    parameters: 106_852_251_264,
    bytes: { fp16: 213_704_502_528, int8: null, int4: null },
    linear: null,
  },
  "glm-4.5": {
    parameters: 352_797_829_024,
    bytes: { fp16: 705_595_658_048, int8: null, int4: null },
    linear: null,
  },
};

/** One layer, by the formula. */
export interface LayerCounts {
  /** Weights that are rounded, and the rows in which they lie. */
  linear: number;
  rows: number;
  /** Weights that stay as they are: of the router. */
  router: number;
  /** Biases, norms, and what is added to the experts' scores. */
  vectors: number;
  /** The last of these alone, which is float32 in the file. */
  scoreBias: number;
}

/** @param layer Counted from 0: the first ones have no experts. */
export function layerCounts(model: Facts, layer: number): LayerCounts {
  const { hidden, heads, kvHeads, headDim, ffn, bias, norm, gated, experts } = model;
  const query = heads * headDim;
  const qkv = query + 2 * kvHeads * headDim;
  const routed = experts !== undefined && layer >= experts.dense ? experts : null;
  const inputs = gated ? 2 : 1;
  const parts = routed ? routed.count + routed.shared : 1;
  const inner = routed ? routed.ffn : ffn;
  const biases = {
    none: 0,
    qkv,
    all: qkv + hidden + inputs * ffn + hidden,
  }[bias];
  const norms = { rms: 2, layer: 4, sandwich: 4 }[norm] * hidden + (experts?.headNorms ? 2 * headDim : 0);
  const scoreBias = routed?.count ?? 0;
  return {
    linear: hidden * qkv + query * hidden + parts * (inputs + 1) * hidden * inner,
    rows: qkv + hidden + parts * (inputs * inner + hidden),
    router: scoreBias * hidden,
    vectors: biases + norms + scoreBias,
    scoreBias,
  };
}

export interface ModelCounts {
  parameters: number;
  /** Of all layers. */
  layers: LayerCounts;
  /** Every parameter at two bytes, and the rounding of the authors: layers alone, a scale per row. */
  fp16: number;
  int8: number;
  int4: number;
}

export function modelCounts(model: Facts): ModelCounts {
  const { hidden, vocab, norm, tied, positions = 0, int4Group } = model;
  const layers: LayerCounts = { linear: 0, rows: 0, router: 0, vectors: 0, scoreBias: 0 };
  for (let layer = 0; layer < model.layers; layer++) {
    const counts = layerCounts(model, layer);
    for (const key of Object.keys(layers) as (keyof LayerCounts)[]) layers[key] += counts[key];
  }
  const ends = (tied ? 1 : 2) * vocab * hidden + 2 * positions * hidden;
  const others = layers.router + layers.vectors + ends + (norm === "layer" ? 2 : 1) * hidden;
  const parameters = layers.linear + others;
  const int4Scales = int4Group === undefined ? layers.rows : layers.linear / int4Group;
  return {
    parameters,
    layers,
    fp16: 2 * parameters,
    int8: layers.linear + 2 * layers.rows + 2 * others,
    int4: layers.linear / 2 + 2 * int4Scales + 2 * others,
  };
}
