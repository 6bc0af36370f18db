/** What cards and loader say of every published model, against arithmetic that knows neither. */
import { describe, expect, it } from "vitest";
import { familyBytes, schemeNames } from "../../../bench/families-bytes.js";
import { facts, layerCounts, modelCounts, table } from "../../../bench/reference.js";
import { paperModel } from "../../../checkpoint/paper-model.js";
import { published, publishedNames } from "../../../models/published.js";

describe.each(publishedNames)("%s", (name) => {
  const model = paperModel(published[name]);
  const counts = modelCounts(facts[name]);
  const bytes = familyBytes(name);

  it("has the published number of parameters, by its card and by the formula", () => {
    expect(model.parameterCount).toBe(table[name].parameters);
    expect(counts.parameters).toBe(table[name].parameters);
  });

  it("needs the bytes of the table by the formula", () => {
    const { fp16, int8, int4 } = table[name].bytes;
    expect(counts.fp16).toBe(fp16);
    if (int8 !== null) expect(counts.int8).toBe(int8);
    if (int4 !== null) expect(counts.int4).toBe(int4);
    const { linear } = table[name];
    if (linear !== null) expect(counts.layers.linear).toBe(linear * facts[name].layers);
  });

  it("stores every layer in the bytes of the formula", () => {
    const expected = model.layerBytes.map((_, layer) => {
      const { linear, router, vectors, scoreBias } = layerCounts(facts[name], layer);
      // What is added to the experts' scores is float32 in the file.
      return 2 * (linear + router + vectors + scoreBias);
    });
    expect(model.layerBytes).toEqual(expected);
  });

  it.each(schemeNames)("differs from the formula in the head, scales and vectors alone: %s", (scheme) => {
    const { ours, formula, head, scales, vectors } = bytes.schemes[scheme];
    expect(ours - formula).toBe(head + scales + vectors);
    // As stored, and with a scale per row, layers are those of the formula.
    const sameScales = scheme === "stored" || (scheme === "int4 row" && facts[name].int4Group === undefined);
    if (sameScales) expect(scales).toBe(0);
  });

  it("is found by its config.json", () => {
    expect(model.card).toBe(published[name].card);
  });
});
