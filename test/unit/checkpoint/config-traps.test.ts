/** What config.json says in silence: every switch of the authors' code is honoured, refused or told. */
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { readConfig, shapeFrom } from "../../../checkpoint/config.js";
import { openModel } from "../../../checkpoint/index.js";
import { withPublishedNames } from "../../../checkpoint/newer-names.js";
import { packageRoot } from "../../../common/package.js";
import type { ModelCard } from "../../../models/card.js";
import { chatglm2 } from "../../../models/chatglm2.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm, glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { temporaryDirectory, tensor, tinyConfig, tinyTensors, writeTinyModel } from "./model-fixture.js";

type Config = Record<string, unknown>;

/** A copy of a fixture in the layout of transformers, with another config.json; undefined leaves a field out. */
function copyOf(name: "glm-tiny" | "glm4-tiny", changes: Config): string {
  const fixture = join(packageRoot, "test/golden/fixtures", name);
  const directory = temporaryDirectory();
  const config = JSON.parse(readFileSync(join(fixture, "config.json"), "utf8")) as Config;
  writeFileSync(join(directory, "config.json"), JSON.stringify({ ...config, ...changes }));
  copyFileSync(join(fixture, "model.safetensors"), join(directory, "model.safetensors"));
  return directory;
}

describe("switches of the authors' code that change the network are refused", () => {
  it.each([
    ["position_encoding_2d", true, "prefix-LM"],
    ["multi_query_attention", false, "interleaved per head"],
    ["interleaved_qkv", true, "another row order"],
    ["apply_residual_connection_post_layernorm", true, "the normalised tensor"],
    ["post_layer_norm", false, "no final norm"],
    ["rmsnorm", false, "LayerNorm"],
    ["add_bias_linear", true, "biases on every linear"],
    ["original_rope", false, "pairs"],
    ["fp32_residual_connection", true, "another type"],
    ["tie_word_embeddings", true, "no head of its own"],
    ["vision_config", {}, "reads images"],
  ])("%s = %j", async (field, value, meaning) => {
    const opened = openModel(await writeTinyModel({ config: { [field]: value } }));
    await expect(opened).rejects.toThrow(`"${field}" is ${JSON.stringify(value)}`);
    await expect(opened).rejects.toThrow(meaning);
  });
});

describe("RoPE of the layout of transformers", () => {
  const yarn = { rope_type: "yarn", factor: 4, original_max_position_embeddings: 32_768 };

  it("that is scaled is refused, and the message says how to do without", async () => {
    for (const changes of [{ rope_scaling: yarn }, { rope_parameters: yarn, rope_scaling: null }]) {
      const directory = copyOf("glm4-tiny", changes);
      await expect(openModel(directory)).rejects.toThrow("positions are scaled; --set rope_scaling=null");
      const { warnings } = await openModel(directory, { overrides: { rope_scaling: null } });
      expect(warnings).toEqual([
        `${directory}/config.json: "rope_scaling" is null by --set instead of ${JSON.stringify(yarn)}`,
      ]);
    }
  });

  it("is found under its newer names too", async () => {
    const rope_parameters = { rope_type: "default", rope_theta: 77_000, partial_rotary_factor: 0.5 };
    const changes = { rope_parameters, rope_theta: undefined, partial_rotary_factor: undefined };
    const directory = copyOf("glm4-tiny", { ...changes, torch_dtype: undefined, dtype: "bfloat16" });
    expect(await openModel(directory)).toMatchObject({ dtype: "bfloat16", shape: { ropeBase: 77_000 } });
    const other = { rope_parameters: { ...rope_parameters, partial_rotary_factor: 1 } };
    await expect(openModel(copyOf("glm4-tiny", { ...changes, ...other }))).rejects.toThrow(
      '"partial_rotary_factor" is 1',
    );
  });

  it("under both names is what the published one says, unless that says nothing", () => {
    const rope_parameters = { rope_theta: 5, factor: 1 };
    expect(withPublishedNames({ rope_theta: 7, rope_parameters })).toEqual({
      rope_theta: 7,
      rope_parameters,
    });
    expect(withPublishedNames({ rope_theta: null, rope_parameters }).rope_theta).toBe(5);
    expect(withPublishedNames({ rope_parameters: [], a: null })).toEqual({ rope_parameters: [], a: null });
  });
});

describe("warnings", () => {
  it("of a scaling that the authors' code does not read", async () => {
    const directory = await writeTinyModel({ config: { rope_scaling: { type: "linear", factor: 2 } } });
    expect((await openModel(directory)).warnings).toEqual([
      `${directory}/config.json: "rope_scaling" is {"type":"linear","factor":2}, which the authors' code does not read`,
    ]);
  });

  it("of a bias that config.json denies, and of layers beyond those it counts", async () => {
    const directory = await writeTinyModel({ config: { add_qkv_bias: false, num_layers: 2 } });
    const [warning, ...others] = (await openModel(directory)).warnings;
    expect(others).toEqual([]);
    expect(warning).toContain("layers.0.self_attention.query_key_value.bias");
    expect(warning).toMatch(/, and \d+ more$/);
  });

  it("of no tensor that is computed anew", async () => {
    const frequencies = tensor("transformer.rotary_pos_emb.inv_freq", [4]);
    const { warnings } = await openModel(await writeTinyModel({ tensors: [...tinyTensors(), frequencies] }));
    expect(warnings).toEqual([]);
  });
});

describe("ids beyond the vocabulary, without a tokenizer", () => {
  it.each<[string, ModelCard, number, number]>([
    ["ChatGLM2", chatglm2, 65_024, 64_794],
    ["ChatGLM3", chatglm3, 65_024, 64_798],
    ["GLM-4-9B", glm4_9b, 151_552, 151_343],
    ["another size", chatglm3, 65_025, 65_025],
  ])("%s", (_, card, rows, tokens) => {
    const config = { ...tinyConfig, padded_vocab_size: rows };
    expect(shapeFrom(config, card, null, "/model")).toMatchObject({ vocabSize: rows, tokenCount: tokens });
    // A tokenizer knows better.
    expect(shapeFrom(config, card, 1000, "/model").tokenCount).toBe(1000);
  });

  it.each([
    ["glm-tiny", glm],
    ["glm4-tiny", glm4],
  ] as const)("%s in the layout of transformers", async (name, card) => {
    const config = await readConfig(copyOf(name, { vocab_size: 151_552 }));
    expect(shapeFrom(config, card, null, "/model").tokenCount).toBe(151_343);
  });
});
