/** GLM-4 in the layout of the transformers package: queries, keys and values apart, facts by other names. */
import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openModel, stageTensors } from "../../../checkpoint/index.js";
import { type TensorData, writeSafetensors } from "../../../checkpoint/safetensors-writer.js";
import { packageRoot } from "../../../common/package.js";
import { temporaryDirectory } from "./model-fixture.js";

const fixture = (name: string) => join(packageRoot, "test/golden/fixtures", name);

/** A copy of a fixture with another config.json. */
function copy(name: string, changes: Record<string, unknown>): string {
  const directory = temporaryDirectory();
  const config = JSON.parse(readFileSync(join(fixture(name), "config.json"), "utf8")) as object;
  writeFileSync(join(directory, "config.json"), JSON.stringify({ ...config, ...changes }));
  copyFileSync(join(fixture(name), "model.safetensors"), join(directory, "model.safetensors"));
  return directory;
}

/** The fixture's weights, one tensor changed or left out. */
async function withTensor(name: string, change: (tensor: TensorData) => TensorData | null): Promise<string> {
  const directory = copy(name, {});
  const model = await openModel(directory);
  const bytes = readFileSync(join(directory, "model.safetensors"));
  const tensors = [...model.tensors.values()].flatMap(({ name, dtype, shape, byteOffset, byteLength }) => {
    const changed = change({ name, dtype, shape, data: bytes.subarray(byteOffset, byteOffset + byteLength) });
    return changed === null ? [] : [changed];
  });
  await writeSafetensors(join(directory, "model.safetensors"), tensors);
  return directory;
}

describe("GLM-4 as transformers keeps it", () => {
  it("has its facts under that package's names, and norms of what is added where the family has them", async () => {
    const glm = await openModel(fixture("glm-tiny"));
    const glm4 = await openModel(fixture("glm4-tiny"));
    expect(glm.shape).toMatchObject({
      headCount: 4,
      kvHeadCount: 2,
      headDim: 16,
      ropeDim: 8,
      ropeBase: 10_000,
    });
    expect(glm.stopTokens).toEqual([2]);
    const range = { layerBegin: 1, layerEnd: 2, embed: false, head: false };
    const [plain] = stageTensors(glm, range).layers;
    const [sandwich] = stageTensors(glm4, range).layers;
    expect(plain!.qkvWeight.map(({ shape }) => shape[0])).toEqual([64, 32, 32]);
    expect(plain!.qkvBias!.map(({ shape }) => shape[0])).toEqual([64, 32, 32]);
    expect(plain!.attentionOutNorm).toBeNull();
    expect(sandwich!.qkvBias).toBeNull();
    expect(sandwich!.attentionOutNorm!.shape).toEqual([48]);
    expect(sandwich!.ffnOutNorm!.shape).toEqual([48]);
  });

  it.each([
    ["glm-tiny", 131_072, 10_000, 5e6],
    ["glm-tiny", 1_048_576, 10_000, 1e8],
    ["glm-tiny", 131_072, 5e6, null],
    ["glm-tiny", 8_192, 10_000, null],
    ["glm4-tiny", 131_072, 10_000, null],
  ])("%s with %i positions and a base of %i", async (name, positions, written, used) => {
    const model = await openModel(copy(name, { max_position_embeddings: positions, rope_theta: written }));
    expect(model.shape.ropeBase).toBe(used ?? written);
    expect(model.warnings).toHaveLength(used === null ? 0 : 1);
    if (used !== null) {
      expect(model.warnings[0]).toMatch(
        /config.json: "rope_theta" is 10000, which contradicts .*; \d+ is used$/,
      );
    }
  });

  it.each([
    ["rope_scaling", { type: "yarn", factor: 4 }, "positions are scaled"],
    ["partial_rotary_factor", 1, "another share of each head is rotated"],
    ["tie_word_embeddings", true, "no head of its own"],
    ["quantization_config", { bits: 4 }, "the weights are quantized by another program"],
    ["rope_theta", "much", "expected a number above 0"],
  ])("with %s as %j is refused", async (field, value, message) => {
    await expect(openModel(copy("glm4-tiny", { [field]: value }))).rejects.toThrow(message);
  });

  it("names the part that is missing, or of another type than the others", async () => {
    const values = "model.layers.2.self_attn.v_proj.weight";
    const without = await withTensor("glm4-tiny", (tensor) => (tensor.name === values ? null : tensor));
    await expect(openModel(without)).rejects.toThrow(`missing tensor ${values}`);
    const mixed = await withTensor("glm4-tiny", (tensor) => {
      if (tensor.name !== values) return tensor;
      return { ...tensor, dtype: "F16", data: (tensor.data as Uint8Array).subarray(0, 32 * 48 * 2) };
    });
    await expect(openModel(mixed)).rejects.toThrow(
      `tensor model.layers.2.self_attn.q_proj.weight is float32 and ${values} is float16, expected one type`,
    );
  });
});
