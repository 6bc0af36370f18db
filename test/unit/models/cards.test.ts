/** Which card a directory gets: every published config, and directories that contradict themselves. */
import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm, glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { glm45Prompt, glm45Tokenizer } from "../../../models/glm45-prompt.js";
import { cardFor } from "../../../models/index.js";

type Json = Record<string, unknown>;

/** What all published config.json of the authors' layout say alike. */
const common: Json = {
  architectures: ["ChatGLMModel"],
  model_type: "chatglm",
  add_bias_linear: false,
  add_qkv_bias: true,
  apply_residual_connection_post_layernorm: false,
  ffn_hidden_size: 13_696,
  hidden_size: 4096,
  kv_channels: 128,
  multi_query_attention: true,
  multi_query_group_num: 2,
  num_attention_heads: 32,
  original_rope: true,
  post_layer_norm: true,
  rmsnorm: true,
  tie_word_embeddings: false,
};
const sixB: Json = {
  ...common,
  eos_token_id: 2,
  layernorm_epsilon: 1e-5,
  num_layers: 28,
  padded_vocab_size: 65_024,
  torch_dtype: "float16",
};
const nineB: Json = {
  ...common,
  eos_token_id: [151_329, 151_336, 151_338],
  layernorm_epsilon: 1.5625e-7,
  num_layers: 40,
  padded_vocab_size: 151_552,
  torch_dtype: "bfloat16",
};

interface Directory {
  config: Json;
  tokenizerConfig?: Json;
  tokenizer?: boolean;
}

const find = ({ config, tokenizerConfig, tokenizer = true }: Directory) =>
  cardFor({
    directory: "/models/x",
    config,
    tokenizerConfig: tokenizerConfig ?? null,
    hasFile: (name) => tokenizer && name === "tokenizer.model",
  });

function refusal(directory: Directory): string {
  try {
    find(directory);
  } catch (error) {
    expect(error).toBeInstanceOf(RelayError);
    expect((error as RelayError).code).toBe("invalid_model");
    return (error as RelayError).message;
  }
  throw new Error("accepted");
}

const chatglm3Template =
  "{% for message in messages %}[gMASK]sop<|{{ message['role'] }}|>{% endfor %}<|assistant|>";

describe("a published model has its card", () => {
  it.each([
    ["THUDM/chatglm2-6b", { ...sixB, seq_length: 32_768 }, "chatglm2"],
    ["THUDM/chatglm2-6b-32k", { ...sixB, seq_length: 32_768, rope_ratio: 16 }, "chatglm2"],
    ["THUDM/chatglm3-6b", { ...sixB, seq_length: 8192 }, "chatglm3"],
    ["THUDM/chatglm3-6b-base", { ...sixB, seq_length: 32_768 }, "chatglm3"],
    ["THUDM/chatglm3-6b-32k", { ...sixB, seq_length: 32_768, rope_ratio: 50 }, "chatglm3"],
    ["THUDM/chatglm3-6b-128k", { ...sixB, seq_length: 131_072, rope_ratio: 500 }, "chatglm3"],
    ["THUDM/chatglm-6b", { ...common, position_encoding_2d: true, vocab_size: 130_528 }, "chatglm-6b"],
    ["THUDM/glm-4-9b", { ...nineB, seq_length: 8192 }, "glm4-9b"],
    ["THUDM/glm-4-9b-chat", { ...nineB, seq_length: 131_072, rope_ratio: 500 }, "glm4-9b"],
    [
      "THUDM/glm-4-9b-chat-1m",
      { ...nineB, seq_length: 1_048_576, rope_ratio: 10_000, multi_query_group_num: 4 },
      "glm4-9b",
    ],
  ])("%s", (name, config, family) => {
    expect(find({ config: { ...config, _name_or_path: name } }).family).toBe(family);
  });
});

describe("ChatGLM2 and ChatGLM3, whose config.json may be the same, are told apart", () => {
  it.each<[string, Directory, string]>([
    [
      "a path in config.json",
      { config: { ...sixB, _name_or_path: "/data/chatglm3/chatglm2-6b/" } },
      "chatglm2",
    ],
    [
      "the name in tokenizer_config.json",
      { config: sixB, tokenizerConfig: { name_or_path: "THUDM/chatglm2-6b" } },
      "chatglm2",
    ],
    [
      "ChatGLM3's chat template",
      { config: sixB, tokenizerConfig: { chat_template: chatglm3Template } },
      "chatglm3",
    ],
  ])("by %s", (_, directory, family) => {
    expect(find(directory).family).toBe(family);
  });

  it("or not at all: the message says what would tell", () => {
    const message = refusal({ config: { ...sixB, _name_or_path: "out" }, tokenizerConfig: {} });
    expect(message).toContain("/models/x/config.json: the model could be ChatGLM3 or ChatGLM2");
    expect(message).toContain('expected a "_name_or_path" that tells, such as "chatglm3" or "chatglm2"');
  });

  it("unless nothing depends on it: no tokenizer, and no RoPE ratio", () => {
    expect(find({ config: sixB, tokenizer: false }).family).toBe("chatglm3");
    expect(refusal({ config: { ...sixB, rope_ratio: 16 }, tokenizer: false })).toContain("could be ChatGLM3");
  });
});

describe("a directory that contradicts itself is refused", () => {
  it.each<[string, Directory, string[]]>([
    [
      "two names",
      { config: { ...sixB, _name_or_path: "chatglm2-6b" }, tokenizerConfig: { name_or_path: "chatglm3-6b" } },
      [
        '"_name_or_path" of config.json is "chatglm2-6b", a sign of ChatGLM2',
        '"chatglm3-6b", a sign of ChatGLM3',
      ],
    ],
    [
      "ChatGLM2's name beside ChatGLM3's roles",
      {
        config: { ...sixB, _name_or_path: "chatglm2-6b" },
        tokenizerConfig: { chat_template: chatglm3Template },
      },
      ['tokenizer_config.json holds "<|assistant|>", a sign of ChatGLM3'],
    ],
    [
      "ChatGLM3's name with GLM-4's end tokens",
      { config: { ...nineB, _name_or_path: "chatglm3-6b" } },
      ['"eos_token_id" is [151329,151336,151338], supported for ChatGLM3: 2'],
    ],
    [
      "GLM-4's name with ChatGLM3's end token",
      { config: { ...sixB, _name_or_path: "glm-4-9b" } },
      ['"eos_token_id" is 2, supported for GLM-4-9B: anything but 2'],
    ],
  ])("%s", (_, directory, expected) => {
    const message = refusal(directory);
    for (const part of expected) expect(message).toContain(part);
  });
});

it.each<[Json, string]>([
  [{ architectures: ["GlmForCausalLM"], model_type: "glm" }, "glm"],
  [{ architectures: ["Glm4ForCausalLM"], model_type: "glm4", _name_or_path: "THUDM/GLM-4-32B-0414" }, "glm4"],
  [{ model_type: "glm4" }, "glm4"],
  [
    { architectures: ["Glm4MoeForCausalLM"], n_shared_experts: 1, _name_or_path: "zai-org/GLM-4.5-Air" },
    "glm4-moe",
  ],
  [{ model_type: "glm4_moe", n_shared_experts: 1, _name_or_path: "zai-org/GLM-4.7" }, "glm4-moe"],
])("the layouts of the transformers package are found by their architecture: %j", (config, family) => {
  expect(find({ config }).family).toBe(family);
});

describe("families without a name of their own in config.json", () => {
  const glm10 = { model_type: "glm-10b" };
  it.each<[string, Json, string[], string]>([
    ["GLM-130B by what its shards say", { model_type: "glm-130b" }, [], "glm-130b"],
    ["GLM-10B by GPT-2's vocabulary", glm10, ["vocab.json", "merges.txt"], "glm-10b"],
    ["GLM-10B-Chinese by its SentencePiece file", glm10, ["cog-pretrain.model"], "glm-10b-chinese"],
    ["GLM-10B-Chinese by its rows", { ...glm10, vocab_size: 50_048 }, [], "glm-10b-chinese"],
    ["GLM-10B by its rows", { ...glm10, vocab_size: 50_304 }, [], "glm-10b"],
  ])("%s", (_, config, files, family) => {
    const facts = { directory: "/models/x", config, tokenizerConfig: null };
    expect(cardFor({ ...facts, hasFile: (name) => files.includes(name) }).family).toBe(family);
  });

  it("are refused where file and rows contradict each other", () => {
    const config = { ...glm10, vocab_size: 50_304 };
    const facts = { directory: "/models/x", config, tokenizerConfig: null };
    expect(() => cardFor({ ...facts, hasFile: (name) => name === "cog-pretrain.model" })).toThrow(
      'cog-pretrain.model is there, a sign of GLM-10B-Chinese, but "vocab_size" of config.json is 50304, a sign of GLM-10B;',
    );
  });
});

describe("what is not computed is refused by name", () => {
  it.each<[Json, string]>([
    [{ architectures: ["Glm4MoeForCausalLM"] }, '"n_shared_experts" is absent'],
    [{ architectures: ["LlamaForCausalLM"] }, "(ChatGLM3, ChatGLM2, ChatGLM-6B, GLM-4-9B, "],
    [{ ...nineB, vision_config: { hidden_size: 1792 } }, "reads images"],
    [{ ...sixB, position_encoding_2d: true, vocab_size: 150_528 }, "the first release"],
    [{ ...sixB, quantization_bit: 4 }, "quantized"],
  ])("%j", (config, expected) => {
    expect(refusal({ config, tokenizer: false })).toContain(expected);
  });
});

it("formats name special tokens that their tokenizers have", () => {
  const { specialTokens, visibleTokens = [], stopTokens } = glm45Tokenizer;
  const { prefix, open, thinking, calls } = glm45Prompt;
  const tags = [...calls.call, ...calls.name, ...calls.value, thinking.begin, thinking.end];
  const named = [...prefix, ...Object.values(open), ...tags, thinking.off, ...visibleTokens, ...stopTokens];
  expect(named.filter((name) => !specialTokens.includes(name))).toEqual([]);
  // What a reply is read by must be part of its text.
  expect(tags.filter((name) => !visibleTokens.includes(name))).toEqual([]);
  for (const { prompt, tokenizer } of [chatglm3, glm4_9b, glm, glm4]) {
    if (prompt.kind !== "roles") throw new Error("another format");
    const roles = [...prompt.prefix, ...Object.values(prompt.roles), prompt.generation];
    expect(roles.filter((name) => !tokenizer.specialTokens.includes(name))).toEqual([]);
  }
});
