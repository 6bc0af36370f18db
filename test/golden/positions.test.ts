/** Learned tables of positions: their last rows are reached, nothing behind them, and fewer positions may be served. */
import { expect, test } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { greedy, rows, tokenStep } from "../native/support.js";
import { fixtureFolder, pipelineOf } from "./support.js";

const open = (overrides: Record<string, unknown> = {}) =>
  openModel(fixtureFolder("glm-10b-tiny"), { overrides });

/** The last row of a sequence that fills all positions, its context of a length or none. */
async function last(overrides: Record<string, unknown>, length: number, contextLength: number) {
  const model = await open(overrides);
  const pipeline = await pipelineOf(model, 100, []);
  const ids = Array.from({ length }, (_, index) => index % 100);
  const context = { contextLength, maskPosition: contextLength - 1 };
  const blocks = Array.from({ length: 9 }, (_, index) => index);
  const step = tokenStep([{ ...rows(0, length, blocks), ...context }], ids);
  step.samples = [greedy(length - 1, length, 20)];
  try {
    return (await pipeline.step(step)).samples[0]!;
  } finally {
    await pipeline.close();
  }
}

test.each([0, 1, 100, 128])("all positions are computed with a context of %i", async (contextLength) => {
  expect((await last({}, 128, contextLength)).finite).toBe(true);
});

test("one position more is refused", async () => {
  await expect(last({ max_sequence_length: 127 }, 128, 0)).rejects.toThrow("beyond maxPositions 127");
});

test("a table for more positions than are served gives the same, one for fewer is refused", async () => {
  for (const contextLength of [0, 30]) {
    expect(await last({ max_sequence_length: 64 }, 64, contextLength)).toEqual(
      await last({}, 64, contextLength),
    );
  }
  await expect(open({ max_sequence_length: 129 })).rejects.toThrow("expected [130, 64]");
});
