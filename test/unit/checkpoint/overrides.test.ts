/** Fields of config.json that a person replaces: read, told, and part of the fingerprint. */
import { copyFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { maxOverridesBytes, overridesText, parseOverrides } from "../../../checkpoint/overrides.js";
import { packageRoot } from "../../../common/package.js";
import { temporaryDirectory, writeTinyModel } from "./model-fixture.js";

describe("overrides", () => {
  it("replace and add fields, and say so", async () => {
    const directory = await writeTinyModel({ config: { quantization_bit: 4 } });
    const path = join(directory, "config.json");
    const overrides = { quantization_bit: 0, seq_length: 64, rope_ratio: 50, sequence_length: 1 };
    const model = await openModel(directory, { overrides });
    expect(model.shape).toMatchObject({ maxPositions: 64, ropeBase: 500_000 });
    expect(model.warnings).toEqual([
      `${path}: "quantization_bit" is 0 by --set instead of 4`,
      `${path}: "rope_ratio" is 50 by --set; the file has no such field`,
      `${path}: "seq_length" is 64 by --set instead of 128`,
      `${path}: "sequence_length" is 1 by --set; the file has no such field`,
    ]);
  });

  it("are checked like the file", async () => {
    const opened = openModel(await writeTinyModel(), { overrides: { num_layers: "3" } });
    await expect(opened).rejects.toThrow('"num_layers" is "3", expected a whole number');
  });

  it("enter the fingerprint in any order, the same directory or not", async () => {
    const directory = await writeTinyModel();
    const of = async (overrides: object) =>
      (await openModel(directory, { overrides: { ...overrides } })).fingerprint;
    const without = (await openModel(directory)).fingerprint;
    expect(await of({})).toBe(without);
    const all = [without, await of({ a: 1 }), await of({ a: 2 }), await of({ a: 1, b: 1 })];
    expect(new Set(all).size).toBe(all.length);
    expect(await of({ b: 1, a: 1 })).toBe(all[3]);
  });

  it("decide where the file's RoPE base would be corrected", async () => {
    const directory = temporaryDirectory();
    const fixture = join(packageRoot, "test/golden/fixtures/glm-tiny");
    for (const name of ["config.json", "model.safetensors"])
      copyFileSync(join(fixture, name), join(directory, name));
    const overrides = { max_position_embeddings: 131_072 };
    expect((await openModel(directory, { overrides })).shape.ropeBase).toBe(5e6);
    const model = await openModel(directory, { overrides: { ...overrides, rope_theta: 10_000 } });
    expect(model.shape.ropeBase).toBe(10_000);
    expect(model.warnings.join()).not.toContain("contradicts");
  });

  it("travel as text", () => {
    const overrides = { b: null, a: [1, "x"], ["__proto__"]: 1 };
    expect(parseOverrides(overridesText(overrides))).toEqual(overrides);
    expect(overridesText({})).toBe("");
    expect(parseOverrides("")).toEqual({});
    const nested = `{"a": ${"[".repeat(30_000)}${"]".repeat(30_000)}}`;
    const damaged = [
      "{",
      "[]",
      "null",
      "7",
      `{"a": "${"x".repeat(maxOverridesBytes)}"}`,
      "[".repeat(60_000),
      nested,
    ];
    for (const text of damaged) expect(() => parseOverrides(text)).toThrow("config_overrides");
  });
});
