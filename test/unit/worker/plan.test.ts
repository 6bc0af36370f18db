import { expect, test } from "vitest";
import type { Assign__Output } from "../../../proto/generated/glm/relay/internal/v1/Assign.js";
import { decodeAssign, stageKey } from "../../../worker/stage/plan.js";

const assign: Assign__Output = {
  epoch: { term: 1, plan: 1 },
  pipeline: 0,
  stage: 1,
  stageCount: 3,
  layerBegin: 2,
  layerEnd: 4,
  modelDirectory: "/model",
  weightsFingerprint: "f",
  dtype: "float16",
  blockCount: 8,
  blockSize: 16,
  maxRows: 64,
  predecessor: "127.0.0.1:1",
  credits: 8,
};

const keyOf = (changes: Partial<Assign__Output>) => stageKey(decodeAssign({ ...assign, ...changes }));

test.each([
  [{ epoch: null }, "plan's epoch is absent"],
  [{ stage: 3 }, "plan's stage is 3: expected less than the 3 stages"],
  [{ layerEnd: 2 }, "plan's layers is [2, 2): expected at least one"],
  [{ dtype: "float8" }, 'plan\'s dtype is "float8": expected float32, float16, bfloat16'],
  [{ blockCount: 0 }, "plan's block_count is 0"],
  [{ maxRows: 513 }, "plan's max_rows is 513: expected 1 to 512"],
  [{ credits: 65 }, "plan's credits is 65: expected 1 to 64"],
])("a plan with %j is refused", (changes, message) => {
  expect(() => decodeAssign({ ...assign, ...changes })).toThrow(message);
});

test("a stage is kept when only epoch and neighbours change", () => {
  expect(keyOf({ epoch: { term: 2, plan: 1 }, predecessor: "127.0.0.1:2", credits: 4 })).toBe(keyOf({}));
});

test("a stage is built anew when layers, type, cache or its place at an end change", () => {
  const keys = [
    keyOf({}),
    keyOf({ layerEnd: 5 }),
    keyOf({ dtype: "float32" }),
    keyOf({ blockCount: 9 }),
    keyOf({ maxRows: 32 }),
    keyOf({ stage: 0 }),
    keyOf({ stage: 2 }),
    keyOf({ weightsFingerprint: "g" }),
  ];
  expect(new Set(keys).size).toBe(keys.length);
});
