/**
 * How families published as tensor-parallel shards (mp_rank_XX_model_states.pt) cut their tensors: every rank
 * holds a part of each matrix under the matrix's own name. Data, from which checkpoint/parallel-shards.ts
 * puts the parts together and checkpoint/shard-config.ts finds out the config.json that is not there.
 */

export type ShardMerge =
  /** Every rank has the whole tensor. */
  | { kind: "replicated" }
  /**
   * The ranks' tensors one after the other along `axis`. With several pieces a rank's rows are as many equal
   * pieces: the first ones of all ranks come first, then the second ones, and so on (axis 0 only).
   */
  | { kind: "concat"; axis: 0 | 1; pieces: number }
  /** Computed anew, or used in training only. */
  | { kind: "ignored" };

export interface ShardLayout {
  /** What config.json would say; the card is found by it. */
  modelType: string;
  title: string;
  /** By name; {i} stands for the layer. */
  tensors: Readonly<Record<string, ShardMerge>>;
  /** Names of the tensors whose shapes tell the numbers of config.json. */
  sizes: {
    embedding: string;
    /** A layer's matrix with ffnSize columns. */
    ffnDown: string;
    /** The same with rows for what goes in: once the size, or twice where half of them is a gate. */
    ffnUp: string;
    /** Table with a row more than there are positions; absent: the family has none. */
    positions?: string;
  };
  /** Rows of ffnUp in columns of ffnDown. */
  ffnUpRatio: 1 | 2;
  headDim: number;
  /** Fields of config.json that no shape tells. */
  config: Readonly<Record<string, unknown>>;
  /** Ids that end a reply, for the vocabulary of this size. */
  endTokens?: { vocabSize: number; ids: readonly number[] };
}

const replicated: ShardMerge = { kind: "replicated" };
const ignored: ShardMerge = { kind: "ignored" };
const rows = (pieces: number): ShardMerge => ({ kind: "concat", axis: 0, pieces });
const columns: ShardMerge = { kind: "concat", axis: 1, pieces: 1 };

const layer = "transformer.layers.{i}";
const ffnUp = `${layer}.mlp.dense_h_to_4h.weight`;
const ffnDown = `${layer}.mlp.dense_4h_to_h.weight`;

/** @param pieces Of a rank's rows of the fused projection, and of the first matrix of the feed-forward part. */
function layers(pieces: { qkv: number; ffnUp: number }): Record<string, ShardMerge> {
  return {
    [`${layer}.input_layernorm.weight`]: replicated,
    [`${layer}.input_layernorm.bias`]: replicated,
    [`${layer}.attention.query_key_value.weight`]: rows(pieces.qkv),
    [`${layer}.attention.query_key_value.bias`]: rows(pieces.qkv),
    [`${layer}.attention.dense.weight`]: columns,
    [`${layer}.attention.dense.bias`]: replicated,
    [`${layer}.attention.rotary_emb.inv_freq`]: ignored,
    [`${layer}.post_attention_layernorm.weight`]: replicated,
    [`${layer}.post_attention_layernorm.bias`]: replicated,
    [ffnUp]: rows(pieces.ffnUp),
    [`${layer}.mlp.dense_h_to_4h.bias`]: rows(pieces.ffnUp),
    [ffnDown]: columns,
    [`${layer}.mlp.dense_4h_to_h.bias`]: replicated,
    "transformer.final_layernorm.weight": replicated,
    "transformer.final_layernorm.bias": replicated,
  };
}

/** A rank's rows of query_key_value are whole heads; its rows of dense_h_to_4h are a half of each half. */
export const glm130bShards: ShardLayout = {
  modelType: "glm-130b",
  title: "GLM-130B",
  tensors: { "transformer.word_embeddings.weight": rows(1), ...layers({ qkv: 1, ffnUp: 2 }) },
  sizes: { embedding: "transformer.word_embeddings.weight", ffnUp, ffnDown },
  ffnUpRatio: 2,
  headDim: 128,
  config: { max_sequence_length: 2048, layernorm_epsilon: 1e-5 },
  endTokens: { vocabSize: 150_528, ids: [20_002, 150_005] },
};

/** A rank's rows of query_key_value are a part of the queries, of the keys and of the values. */
export const glm10bShards: ShardLayout = {
  modelType: "glm-10b",
  title: "GLM-10B",
  tensors: {
    "word_embeddings.weight": rows(1),
    "transformer.position_embeddings.weight": replicated,
    "transformer.block_position_embeddings.weight": replicated,
    ...layers({ qkv: 3, ffnUp: 1 }),
  },
  sizes: {
    embedding: "word_embeddings.weight",
    ffnUp,
    ffnDown,
    positions: "transformer.position_embeddings.weight",
  },
  ffnUpRatio: 1,
  headDim: 64,
  config: { layernorm_epsilon: 1e-5 },
};

/** Those with a table of positions first: nothing else in the names tells the families apart. */
export const shardLayouts: readonly ShardLayout[] = [glm10bShards, glm130bShards];
