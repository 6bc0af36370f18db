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
  configOverrides: "",
  prefixEncoder: "",
  weightsFingerprint: "f",
  dtype: "float16",
  blockCount: 8,
  blockSize: 16,
  maxRows: 64,
  predecessor: "127.0.0.1:1",
  credits: 8,
  kvType: "float16",
  weightFormat: "stored",
  headFormat: "stored",
  planned: null,
};

const keyOf = (changes: Partial<Assign__Output>) => stageKey(decodeAssign({ ...assign, ...changes }));

test.each([
  [{ epoch: null }, "plan's epoch is absent"],
  [{ stage: 3 }, "plan's stage is 3: expected less than the 3 stages"],
  [{ layerEnd: 2 }, "plan's layers is [2, 2): expected at least one"],
  [{ dtype: "float8" }, 'plan\'s dtype is "float8": expected float32, float16, bfloat16'],
  [{ kvType: "int4" }, 'plan\'s kv_type is "int4": expected float32, float16, bfloat16, int8'],
  [{ weightFormat: "int4" }, 'plan\'s weight_format is "int4": expected a name such as "stored"'],
  [{ headFormat: "int8-g48-search" }, 'plan\'s head_format is "int8-g48-search"'],
  [{ blockCount: 0 }, "plan's block_count is 0"],
  [{ maxRows: 2561 }, "plan's max_rows is 2561: expected 1 to 2560"],
  [{ configOverrides: "[1]" }, 'plan\'s config_overrides is "[1]": expected a JSON object'],
  [{ configOverrides: "{" }, 'plan\'s config_overrides is "{"'],
  [{ credits: 193 }, "plan's credits is 193: expected 1 to 192"],
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
    keyOf({ kvType: "int8" }),
    keyOf({ weightFormat: "int4-g32-search" }),
    keyOf({ weightFormat: "int4-g32-absmax" }),
    keyOf({ headFormat: "int8-row-search" }),
    keyOf({ configOverrides: '{"rope_theta":1}' }),
    keyOf({ configOverrides: '{"rope_theta":2}' }),
    keyOf({ prefixEncoder: "/prefix" }),
  ];
  expect(new Set(keys).size).toBe(keys.length);
});
