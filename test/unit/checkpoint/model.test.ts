/** Opening a model directory: what it finds out, and what it refuses. */
import { appendFileSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { describe, expect, it } from "vitest";
import { openModel, stageTensors } from "../../../checkpoint/index.js";
import { writeSafetensors } from "../../../checkpoint/safetensors-writer.js";
import { RelayError } from "../../../common/errors.js";
import { layerKvBytesPerToken } from "../../../models/quantization.js";
import { plainForm } from "../../../models/shape.js";
import { rankLines, smallTokens } from "../prompt/ranks-fixture.js";
import { sentencePieceBytes, smallPieces } from "../prompt/sentencepiece-fixture.js";
import { type TinyModelOptions, tensor, tinyTensors, writeIndex, writeTinyModel } from "./model-fixture.js";
import { writeTorchFile } from "./torch-fixture.js";

async function refusal(directory: string): Promise<string> {
  const error = await openModel(directory).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(RelayError);
  expect((error as RelayError).code).toBe("invalid_model");
  return (error as RelayError).message;
}

const replaced = (name: string, by: ReturnType<typeof tensor>[]) =>
  tinyTensors().flatMap((candidate) => (candidate.name.endsWith(name) ? by : [candidate]));

/** With this many rows of embedding and head. */
const withVocabulary = (rows: number) =>
  tinyTensors().map((item) => (item.shape[0] === 40 ? tensor(item.name, [rows, 16], "F16") : item));

describe("openModel", () => {
  it("finds shape, type, sizes and id", async () => {
    const directory = await writeTinyModel();
    const model = await openModel(directory);
    expect(model.shape).toEqual({
      hiddenSize: 16,
      layerCount: 3,
      headCount: 2,
      kvHeadCount: 1,
      headDim: 8,
      ffnSize: 24,
      vocabSize: 40,
      tokenCount: 40,
      ropeDim: 4,
      ropeBase: 10_000,
      ropePositionDivisor: 1,
      normEps: 1e-5,
      maxPositions: 128,
      form: plainForm,
      experts: null,
    });
    const layerParameters = 16 + 32 * 16 + 32 + 16 * 16 + 16 + 48 * 16 + 16 * 24;
    expect(model).toMatchObject({ id: basename(directory), dtype: "float16", contextLength: 128 });
    expect(model.parameterCount).toBe(2 * 40 * 16 + 16 + 3 * layerParameters);
    expect(model.layerBytes).toEqual(Array(3).fill(2 * layerParameters));
    expect(model.embeddingBytes).toBe(2 * 40 * 16);
    expect(model.headBytes).toBe(2 * (40 * 16 + 16));
    expect(model.stopTokens).toEqual([2]);
    expect(model.sampling).toEqual({ temperature: 0.8, topP: 0.8 });
    expect(layerKvBytesPerToken(model.shape, "float16")).toBe(2 * 8 * 2);
    expect(layerKvBytesPerToken(model.shape, "int8")).toBe(2 * (8 + 2));
  });

  it("takes the published name, the RoPE ratio and another type from config.json", async () => {
    const config = { _name_or_path: "THUDM/chatglm3-6b-32k", rope_ratio: 50, torch_dtype: "bfloat16" };
    const model = await openModel(await writeTinyModel({ config }));
    expect(model).toMatchObject({ id: "THUDM/chatglm3-6b-32k", dtype: "bfloat16" });
    expect(model.shape.ropeBase).toBe(500_000);
    const local = await writeTinyModel({ config: { _name_or_path: "/home/somebody/out" } });
    expect((await openModel(local)).id).toBe(basename(local));
  });

  it("divides positions by ChatGLM2's ratio instead of raising the base", async () => {
    const config = { _name_or_path: "THUDM/chatglm2-6b-32k", rope_ratio: 16 };
    const { shape, card } = await openModel(await writeTinyModel({ config }));
    expect(card.family).toBe("chatglm2");
    expect(shape).toMatchObject({ ropeBase: 10_000, ropePositionDivisor: 16 });
  });

  it("counts the ranks of GLM-4's tokenizer, whose end tokens are those of config.json", async () => {
    const count = smallTokens().length;
    const endTokens = [count, count + 7, count + 9];
    const options = {
      config: {
        _name_or_path: "THUDM/glm-4-9b-chat",
        eos_token_id: endTokens,
        padded_vocab_size: 400,
        rope_ratio: 500,
      },
      tensors: withVocabulary(400),
    };
    const directory = await writeTinyModel(options);
    writeFileSync(join(directory, "tokenizer.model"), rankLines(smallTokens()));
    const model = await openModel(directory);
    expect(model.stopTokens).toEqual(endTokens);
    expect(model.shape).toMatchObject({ tokenCount: count + 14, ropeBase: 5e6, ropePositionDivisor: 1 });
  });

  it("counts the tokens of the tokenizer and finds its stop tokens", async () => {
    const directory = await writeTinyModel({
      config: { padded_vocab_size: 400 },
      tensors: withVocabulary(400),
    });
    writeFileSync(join(directory, "tokenizer.model"), sentencePieceBytes(smallPieces));
    const model = await openModel(directory);
    const pieces = smallPieces.length;
    expect(model.shape).toMatchObject({ vocabSize: 400, tokenCount: pieces + 9 });
    expect(model.stopTokens).toEqual([2, pieces + 6, pieces + 8]);
  });

  it("reads sampling defaults from generation_config.json", async () => {
    const directory = await writeTinyModel();
    const path = join(directory, "generation_config.json");
    writeFileSync(path, '{"do_sample": false}');
    expect((await openModel(directory)).sampling).toEqual({ temperature: 0, topP: 0.8 });
    writeFileSync(path, '{"temperature": 1.5, "top_p": 0.5}');
    expect((await openModel(directory)).sampling).toEqual({ temperature: 1.5, topP: 0.5 });
    writeFileSync(path, '{"top_p": 7}');
    expect(await refusal(directory)).toContain('"top_p" is 7');
  });

  it("finds the same in shards as in one file", async () => {
    const whole = await openModel(await writeTinyModel());
    const cut = await openModel(await writeTinyModel({ shards: 3 }));
    expect(cut.layerBytes).toEqual(whole.layerBytes);
    expect([...cut.tensors.keys()].sort()).toEqual([...whole.tensors.keys()].sort());
  });

  it.each([undefined, 3])("finds the same in PyTorch files (shards: %s)", async (shards) => {
    const usual = await openModel(await writeTinyModel());
    const torch = await openModel(await writeTinyModel({ format: "torch", shards }));
    const { shape, dtype, layerBytes, parameterCount } = usual;
    expect(torch).toMatchObject({ shape, dtype, layerBytes, parameterCount });
    expect(torch.tensors.size).toBe(usual.tensors.size);
    for (const { name, data } of tinyTensors()) {
      const { file, byteOffset, byteLength } = torch.tensors.get(name)!;
      const stored = readFileSync(file).subarray(byteOffset, byteOffset + byteLength);
      expect(Buffer.compare(stored, data)).toBe(0);
    }
  });

  it("reads safetensors where PyTorch files are beside them", async () => {
    const directory = await writeTinyModel({ shards: 2 });
    writeFileSync(join(directory, "pytorch_model.bin"), "of no interest");
    const { tensors } = await openModel(directory);
    expect([...tensors.values()].every(({ file }) => file.endsWith(".safetensors"))).toBe(true);
  });
});

describe("stageTensors", () => {
  it("gives each stage its own layers and the ends their extra tensors", async () => {
    const directory = await writeTinyModel();
    const model = await openModel(directory);
    const first = stageTensors(model, { layerBegin: 0, layerEnd: 1, embed: true, head: false });
    const last = stageTensors(model, { layerBegin: 1, layerEnd: 3, embed: false, head: true });
    expect(first.layers).toHaveLength(1);
    expect(first.embedding?.map((part) => part.shape)).toEqual([[40, 16]]);
    expect([first.finalNorm, first.head, last.embedding]).toEqual([null, null, null]);
    expect(last.layers).toHaveLength(2);
    const name = "transformer.encoder.layers.2.mlp.dense_4h_to_h.weight";
    const { byteOffset, byteLength, file, shape } = model.tensors.get(name)!;
    expect(last.layers[1]?.ffnDown).toEqual([{ file, byteOffset, byteLength, dtype: "float16", shape }]);
    const stored = readFileSync(file).subarray(byteOffset, byteOffset + byteLength);
    expect(Buffer.compare(stored, tensor(name, [16, 24]).data)).toBe(0);
  });

  it("has no bias where config.json says so", async () => {
    const model = await openModel(await writeTinyModel({ config: { add_qkv_bias: false } }));
    const { layers } = stageTensors(model, { layerBegin: 0, layerEnd: 3, embed: true, head: true });
    expect(layers.map(({ qkvBias }) => qkvBias)).toEqual([null, null, null]);
  });
});

describe("the fingerprint", () => {
  it("is the same for a copy, and another for other weights or another config", async () => {
    const base = (await openModel(await writeTinyModel())).fingerprint;
    expect(base).toMatch(/^[0-9a-f]{64}$/);
    expect((await openModel(await writeTinyModel())).fingerprint).toBe(base);
    const others = [{ tensors: tinyTensors(1) }, { config: { rope_ratio: 2 } }];
    for (const other of others) {
      expect((await openModel(await writeTinyModel(other))).fingerprint).not.toBe(base);
    }
  });

  it("covers PyTorch files in the same way, whatever their names", async () => {
    const fingerprint = async (options: TinyModelOptions, edit?: (directory: string) => void) => {
      const directory = await writeTinyModel({ ...options, format: "torch" });
      edit?.(directory);
      return (await openModel(directory)).fingerprint;
    };
    const base = await fingerprint({});
    expect(await fingerprint({})).toBe(base);
    const renamed = await fingerprint({}, (directory) => {
      renameSync(join(directory, "pytorch_model.bin"), join(directory, "other.bin"));
      const names = tinyTensors().map(({ name }) => [name, "other.bin"]);
      writeIndex(directory, Object.fromEntries(names), "pytorch_model.bin");
    });
    expect(renamed).toBe(base);
    expect(await fingerprint({ tensors: tinyTensors(1) })).not.toBe(base);
    expect(await fingerprint({ shards: 2 })).not.toBe(base);
    // A tensor that the model does not use counts too.
    const extra = tensor("transformer.rotary_pos_emb.inv_freq", [4]);
    expect(await fingerprint({ tensors: [...tinyTensors(), extra] })).not.toBe(base);
  });
});

describe("refusals", () => {
  it.each([
    ["architectures", ["LlamaForCausalLM"], "ChatGLMModel"],
    ["eos_token_id", [151329, 151336, 151338], "GLM-4"],
    ["apply_residual_connection_post_layernorm", true, "supported for ChatGLM3: false"],
    ["post_layer_norm", false, "supported for ChatGLM3: true"],
    ["multi_query_attention", false, "interleaved"],

    ["original_rope", false, "rotated"],
    ["rope_ratio", -1, "above 0"],
    ["hidden_size", 0, "whole number"],
    ["num_layers", "3", "whole number"],
    ["multi_query_group_num", 3, "divisor"],
    ["kv_channels", 6, "multiple of 4"],
    ["layernorm_epsilon", 2, "between 0 and 1"],
    ["torch_dtype", "int8", "bfloat16"],
    ["add_qkv_bias", "yes", "true or false"],
  ])("config.json with %s = %j", async (field, value, expected) => {
    const message = await refusal(await writeTinyModel({ config: { [field]: value } }));
    expect(message).toContain("config.json");
    expect(message).toContain(`"${field}" is ${JSON.stringify(value)}`);
    expect(message).toContain(expected);
  });

  it("a field that is missing", async () => {
    const directory = await writeTinyModel({ config: { multi_query_attention: undefined } });
    expect(await refusal(directory)).toContain('"multi_query_attention" is absent (means false)');
  });

  it("a directory without config.json, and none at all", async () => {
    expect(await refusal("/nowhere/at/all")).toContain("is not a directory");
    const directory = await writeTinyModel();
    writeFileSync(join(directory, "config.json"), "{");
    expect(await refusal(directory)).toContain("not JSON");
  });

  it("a missing tensor, by name and directory", async () => {
    const name = "layers.1.mlp.dense_4h_to_h.weight";
    const directory = await writeTinyModel({ tensors: replaced(name, []) });
    expect(await refusal(directory)).toBe(`missing tensor transformer.encoder.${name} in ${directory}`);
  });

  it("a tensor of another shape", async () => {
    const name = "transformer.output_layer.weight";
    const directory = await writeTinyModel({ tensors: replaced(name, [tensor(name, [40, 17])]) });
    expect(await refusal(directory)).toContain(`tensor ${name} has shape [40, 17], expected [40, 16]`);
  });

  it("a tensor of another type, but only where it is needed", async () => {
    const extra = tensor("transformer.rotary_pos_emb.inv_freq", [4], "I16");
    await openModel(await writeTinyModel({ tensors: [...tinyTensors(), extra] }));
    const name = "transformer.output_layer.weight";
    const directory = await writeTinyModel({ tensors: replaced(name, [tensor(name, [40, 16], "I16")]) });
    expect(await refusal(directory)).toContain(`tensor ${name} has dtype I16, expected F32, F16 or BF16`);
  });

  it("a tokenizer that lost tokens: its end tokens are not those of config.json", async () => {
    const ends = { eos_token_id: [smallTokens().length], padded_vocab_size: 400 };
    const config = { ...ends, _name_or_path: "glm-4-9b" };
    const directory = await writeTinyModel({ config, tensors: withVocabulary(400) });
    const path = join(directory, "tokenizer.model");
    writeFileSync(path, rankLines(smallTokens()));
    await openModel(directory);
    writeFileSync(path, rankLines(smallTokens().slice(0, -1)));
    const message = await refusal(directory);
    expect(message).toContain(`${path}: with its 271 tokens "<|endoftext|>" is 271`);
    expect(message).toContain('expected one to be 272, which is in "eos_token_id"');
  });

  it("a tokenizer_config.json that is no JSON", async () => {
    const directory = await writeTinyModel();
    writeFileSync(join(directory, "tokenizer_config.json"), "{");
    expect(await refusal(directory)).toContain("tokenizer_config.json is not JSON");
  });

  it("a tokenizer with more tokens than the embedding has rows", async () => {
    const directory = await writeTinyModel();
    writeFileSync(join(directory, "tokenizer.model"), sentencePieceBytes(smallPieces));
    expect(await refusal(directory)).toContain('"padded_vocab_size" is 40, expected at least');
  });

  it("no weights, naming a file that may have been meant", async () => {
    const directory = await writeTinyModel();
    rmSync(join(directory, "model.safetensors"));
    const expected =
      "model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json";
    expect(await refusal(directory)).toBe(`no weights in ${directory}: expected one of ${expected}`);
    writeFileSync(join(directory, "pytorch_model-00001-of-00002.bin"), "");
    expect(await refusal(directory)).toContain("; pytorch_model-00001-of-00002.bin is there, but");
  });

  it("a PyTorch file that is none, and a tensor in it of a type that no engine has", async () => {
    const directory = await writeTinyModel({ format: "torch" });
    writeFileSync(join(directory, "pytorch_model.bin"), "hello");
    expect(await refusal(directory)).toContain("pytorch_model.bin does not begin as a zip file");
    const name = "transformer.output_layer.weight";
    const tensors = replaced(name, [tensor(name, [40, 16], "I16")]);
    expect(await refusal(await writeTinyModel({ format: "torch", tensors }))).toContain(
      `tensor ${name} has dtype I16, expected F32, F16 or BF16`,
    );
  });

  it("an index of PyTorch files that leads elsewhere or disagrees with them", async () => {
    const directory = await writeTinyModel({ format: "torch", shards: 2 });
    const index = (map: unknown) => writeIndex(directory, map, "pytorch_model.bin");
    for (const file of ["../pytorch_model.bin", "model.safetensors", "a/b.bin", 7]) {
      index({ a: file });
      expect(await refusal(directory)).toContain(
        `names the file ${JSON.stringify(file)}, expected a .bin file`,
      );
    }
    index({ lost: "pytorch_model-1-of-2.bin", other: "pytorch_model-2-of-2.bin" });
    expect(await refusal(directory)).toContain("puts tensor lost into");
    writeTorchFile(join(directory, "pytorch_model-2-of-2.bin"), tinyTensors().slice(0, 1));
    expect(await refusal(directory)).toContain("word_embeddings.weight is in");
  });

  it("an index without files, or with one elsewhere", async () => {
    const directory = await writeTinyModel({ shards: 1 });
    writeIndex(directory, {});
    expect(await refusal(directory)).toContain('"weight_map" is {}');
    writeIndex(directory, { a: "../model.safetensors" });
    expect(await refusal(directory)).toContain('names the file "../model.safetensors"');
  });

  it("an index that disagrees with its shards", async () => {
    const directory = await writeTinyModel({ shards: 2 });
    const map = { lost: "model-1-of-2.safetensors", other: "model-2-of-2.safetensors" };
    writeIndex(directory, map);
    expect(await refusal(directory)).toContain("puts tensor lost into");
    await writeSafetensors(join(directory, "model-2-of-2.safetensors"), tinyTensors().slice(0, 1));
    expect(await refusal(directory)).toContain("word_embeddings.weight is in");
  });

  it("weights with bytes behind their end", async () => {
    const directory = await writeTinyModel();
    appendFileSync(join(directory, "model.safetensors"), "x");
    expect(await refusal(directory)).toContain("its tensors end");
  });
});
