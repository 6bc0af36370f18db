/** Models of random weights: that they open, that they are reproducible, and that a real cluster serves one. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parameterCount, shapes, writeRandomCheckpoint } from "../../../bench/random-checkpoint.js";
import { type Model, openModel } from "../../../checkpoint/index.js";
import { TestCluster } from "../../support/cluster.js";

const directories: string[] = [];
afterAll(() => {
  for (const directory of directories) rmSync(directory, { recursive: true, force: true });
});

async function tiny(seed: number, layerCount: number = shapes.tiny.layerCount): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-random-"));
  directories.push(directory);
  await writeRandomCheckpoint({ directory, shape: { ...shapes.tiny, layerCount }, seed });
  return directory;
}

/** The float16 values of one tensor. */
function values(model: Model, name: string): number[] {
  const { file, byteOffset, byteLength } = model.tensors.get(name)!;
  const bytes = readFileSync(file).subarray(byteOffset, byteOffset + byteLength);
  return Array.from({ length: byteLength / 2 }, (_, index) => half(bytes.readUInt16LE(index * 2)));
}

function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

const deviation = (list: number[]): number =>
  Math.sqrt(list.reduce((sum, value) => sum + value * value, 0) / list.length);

describe("a checkpoint of random weights", () => {
  it("opens with the shape that was asked for", async () => {
    const model = await openModel(await tiny(1, 6));
    const { contextLength, ...shape } = shapes.tiny;
    expect(model.shape).toMatchObject({ ...shape, layerCount: 6 });
    expect(model.contextLength).toBe(contextLength);
    expect(model.dtype).toBe("float16");
    expect(new Set(model.layerBytes).size).toBe(1);
  });

  it("depends on the seed alone", async () => {
    const bytes = (directory: string) => readFileSync(join(directory, "model.safetensors"));
    const first = bytes(await tiny(7));
    expect(bytes(await tiny(7)).equals(first)).toBe(true);
    expect(bytes(await tiny(8)).equals(first)).toBe(false);
  });

  it("has normal weights, smaller ones where the residual stream is written, and norms of one", async () => {
    const model = await openModel(await tiny(1));
    const layer = (name: string) => values(model, `transformer.encoder.layers.2.${name}.weight`);
    const std = 1.28 / Math.sqrt(128);
    expect(deviation(layer("mlp.dense_h_to_4h")) / std).toBeCloseTo(1, 1);
    expect((deviation(layer("mlp.dense_4h_to_h")) * Math.sqrt(8)) / std).toBeCloseTo(1, 1);
    expect(new Set(layer("input_layernorm"))).toEqual(new Set([1]));
    const other = values(model, "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight");
    expect(other.slice(0, 8)).not.toEqual(layer("mlp.dense_h_to_4h").slice(0, 8));
  });
});

it("the shapes of real models have the published numbers of parameters", () => {
  expect(parameterCount(shapes["chatglm2-6b"])).toBe(6_243_584_000);
  expect(parameterCount(shapes["chatglm3-6b"])).toBe(6_243_584_000);
  expect(parameterCount(shapes["glm-4-9b"])).toBe(9_399_951_360);
  expect(parameterCount({ ...shapes["glm-4-9b"], kvHeadCount: 4 })).toBe(9_483_857_920);
});

it("a model like GLM-4-9B opens as one", async () => {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-random-"));
  directories.push(directory);
  const { config } = shapes["glm-4-9b"];
  await writeRandomCheckpoint({ directory, shape: { ...shapes.tiny, config } });
  const model = await openModel(directory);
  expect(model.card.family).toBe("glm4-9b");
  expect(model.shape).toMatchObject({ ropeBase: 5e6, normEps: 1.5625e-7 });
});

describe("a cluster of two stages with random weights", () => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start({ model: await tiny(1), stages: 2 });
  });
  afterAll(async () => {
    await cluster?.stop();
  });

  it("answers token ids with tokens of finite probability", async () => {
    const body = { prompt: [3, 1, 4, 1, 5], max_tokens: 20, ignore_eos: true, temperature: 0, logprobs: 0 };
    const answer = await cluster.post("/v1/completions", body);
    expect(answer.status).toBe(200);
    const [choice] = answer.body.choices;
    expect(choice.token_ids).toHaveLength(20);
    for (const logprob of choice.logprobs.token_logprobs) expect(logprob).toBeGreaterThan(-Math.log(512));
  });
});
