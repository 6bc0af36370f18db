import { expect, test } from "vitest";
import { bytesFromInt32, checksum, float32FromBytes, int32FromBytes } from "../../../common/bytes.js";
import { maxDraftRows, maxLoggedIdLength } from "../../../common/limits.js";
import type { TokenResult } from "../../../native/index.js";
import type { SequenceRows__Output } from "../../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import {
  decodeStep,
  nonFiniteSequences,
  resultFrame,
  type StepFormat,
  stepFrame,
} from "../../../worker/codec.js";
import { BlockTables } from "../../../worker/kv-cache/block-tables.js";
import { greedy, headerOf, rowsOf } from "./support/steps.js";

const format: StepFormat = {
  first: true,
  last: true,
  stage: 0,
  rowBytes: 16,
  tokenCount: 100,
  maxRows: 8,
};
const none = Buffer.alloc(0);
const tables = () => new BlockTables(8, 4);
const nothing: TokenResult = {
  token: 0,
  logprob: Number.NaN,
  rank: 0,
  topTokens: new Int32Array(0),
  topLogprobs: new Float32Array(0),
  finite: true,
};

/** A buffer that starts at an odd address, as parts of a protobuf message do. */
function unaligned(bytes: Uint8Array): Buffer {
  const padded = Buffer.alloc(bytes.length + 1);
  padded.set(bytes, 1);
  return padded.subarray(1);
}

const header = headerOf(3, [
  rowsOf(1, [10, 11, 12], {
    newBlocks: unaligned(bytesFromInt32([4])),
    tokenIds: unaligned(bytesFromInt32([10, 11, 12])),
    scoreTargets: bytesFromInt32([11, -1, 13]),
    scoreTopLogprobs: 2,
  }),
  rowsOf(2, [20], {
    newBlocks: bytesFromInt32([5, 6]),
    validLength: 6,
    sampling: {
      ...greedy!,
      temperature: 0.5,
      seedLow: 0xffff_ffff,
      seedHigh: 1,
      bannedTokens: bytesFromInt32([9]),
    },
  }),
]);

test("blocks are copied for sequences of the step", () => {
  const copies = [{ from: 4, to: 5 }];
  expect(decodeStep({ ...header, copies }, none, tables(), format).copies).toEqual(copies);
  expect(decodeStep(header, none, tables(), format)).not.toHaveProperty("copies");
});

test.each([
  [[{ from: 8, to: 1 }], "block 8 is to be copied to 1: expected two different ones of 8"],
  [[{ from: 1, to: 8 }], "block 1 is to be copied to 8: expected two different ones of 8"],
  [[{ from: 2, to: 2 }], "block 2 is to be copied to 2: expected two different ones of 8"],
  [
    Array.from({ length: 3 }, () => ({ from: 1, to: 2 })),
    "copies 3 blocks for 2 sequences: expected one each",
  ],
])("copies that make no sense are refused: %j", (copies, message) => {
  const subject = tables();
  expect(() => decodeStep({ ...header, copies }, none, subject, format)).toThrow(message);
  expect(subject.sequenceCount).toBe(0);
});

test("the first stage gets token ids of all rows, block tables and positions", () => {
  const input = decodeStep(header, none, tables(), { ...format, last: false });
  expect(input).toEqual({
    sequences: [
      { rowCount: 3, startPosition: 0, contextLength: 0, maskPosition: -1, blockTable: Int32Array.of(4) },
      { rowCount: 1, startPosition: 6, contextLength: 0, maskPosition: -1, blockTable: Int32Array.of(5, 6) },
    ],
    tokenIds: Int32Array.of(10, 11, 12, 20),
    activations: null,
    samples: [],
    scores: [],
  });
});

test("the last stage gets what to draw and what to score, by row of the step", () => {
  const activations = Buffer.alloc(4 * 16);
  const input = decodeStep(header, activations, tables(), { ...format, first: false });
  expect(input.tokenIds).toBeNull();
  expect(input.activations).toBe(activations);
  expect(input.samples).toEqual([
    {
      row: 3,
      position: 7,
      draft: new Int32Array(0),
      temperature: 0.5,
      topK: 0,
      topP: 1,
      minP: 0,
      seed: 0x1_ffff_ffffn,
      bannedTokens: Int32Array.of(9),
      topLogprobs: -1,
    },
  ]);
  expect(input.scores).toEqual([
    { row: 0, token: 11, topLogprobs: 2 },
    { row: 2, token: 13, topLogprobs: 2 },
  ]);
});

test.each([
  ["too many rows", headerOf(1, [rowsOf(1, [1, 2, 3, 4, 5, 6, 7, 8, 9])]), none, format, "step has 9 rows"],
  [
    "activations at the first stage",
    header,
    Buffer.alloc(64),
    format,
    "64 bytes of activations for 4 rows: expected 0",
  ],
  [
    "too few activations",
    header,
    Buffer.alloc(60),
    { ...format, first: false },
    "60 bytes of activations for 4 rows: expected 64",
  ],
  [
    "the compute time of a stage that is not before it",
    headerOf(1, [rowsOf(1, [1])], { stageUs: [7] }),
    none,
    format,
    "step has the 1 compute times of stages before stage 0: expected 0",
  ],
  [
    "too few compute times",
    headerOf(1, [rowsOf(1, [1])], { stageUs: [7] }),
    Buffer.alloc(16),
    { ...format, first: false, stage: 2 },
    "step has the 1 compute times of stages before stage 2: expected 2",
  ],
  [
    "token ids that are not one per row",
    headerOf(1, [rowsOf(1, [1], { rowCount: 2 })]),
    none,
    format,
    "sequence 1 has 1 token ids for 2 rows",
  ],
  [
    "half a token id",
    headerOf(1, [rowsOf(1, [1], { tokenIds: Buffer.alloc(3) })]),
    none,
    format,
    "3 bytes of token ids",
  ],
  [
    "a token that the model lacks",
    headerOf(1, [rowsOf(1, [100])]),
    none,
    format,
    "sequence 1 holds token 100: the model has 100",
  ],
  [
    "a target that the model lacks",
    headerOf(1, [rowsOf(1, [1], { scoreTargets: bytesFromInt32([100]) })]),
    none,
    format,
    "holds token 100",
  ],
  [
    "too few targets",
    headerOf(1, [rowsOf(1, [1, 2], { scoreTargets: bytesFromInt32([1]) })]),
    none,
    format,
    "1 score targets for 2 rows",
  ],
] as const)("%s are refused and the tables have not changed", (_name, wrong, activations, stage, message) => {
  const blockTables = tables();
  expect(() => decodeStep(wrong, activations, blockTables, stage)).toThrow(message);
  expect(blockTables.sequenceCount).toBe(0);
});

test("a context comes whole with its first row, and is told with every later one", () => {
  const subject = tables();
  const context = { length: 3, maskPosition: 1 };
  const first = headerOf(1, [rowsOf(1, [1, 2, 3, 4], { context, newBlocks: bytesFromInt32([0]) })]);
  const place = { contextLength: 3, maskPosition: 1 };
  expect(decodeStep(first, none, subject, format).sequences).toMatchObject([{ ...place, startPosition: 0 }]);
  const later = headerOf(2, [rowsOf(1, [5], { context, validLength: 4, newBlocks: bytesFromInt32([1]) })]);
  expect(decodeStep(later, none, subject, format).sequences).toMatchObject([{ ...place, startPosition: 4 }]);
});

test.each([
  [
    "the first part",
    [1, 2],
    { length: 3, maskPosition: -1 },
    0,
    "sequence 1 has the rows [0, 2) of a context of 3",
  ],
  [
    "the last part",
    [1, 2],
    { length: 3, maskPosition: -1 },
    2,
    "sequence 1 has the rows [2, 4) of a context of 3",
  ],
  ["a mask behind it", [1, 2], { length: 2, maskPosition: 2 }, 0, "mask at 2: expected -1 to 1"],
  ["a mask in front of it", [1, 2], { length: 2, maskPosition: -2 }, 0, "mask at -2: expected -1 to 1"],
  ["a mask in none", [1, 2], { length: 0, maskPosition: 0 }, 0, "mask at 0: expected -1 to -1"],
] as const)(
  "of a context %s is refused and the tables have not changed",
  (_, ids, context, validLength, message) => {
    const subject = tables();
    const wrong = headerOf(1, [
      rowsOf(1, [...ids], { context, validLength, newBlocks: bytesFromInt32([0, 1]) }),
    ]);
    expect(() => decodeStep(wrong, none, subject, format)).toThrow(message);
    expect(subject.sequenceCount).toBe(0);
  },
);

test("results go back in the header's order with the position of each drawn token", () => {
  const result = (token: number, finite = true): TokenResult => ({
    token,
    logprob: -0.5,
    rank: 2,
    topTokens: Int32Array.of(token, 4),
    topLogprobs: Float32Array.of(-0.25, -3),
    finite,
  });
  const frame = resultFrame(header, {
    activations: null,
    samples: [result(42)],
    scores: [result(11), result(-1, false)],
    computeUs: 1.5,
  });
  const [first, second] = frame.result!.sequences!;
  expect(frame.result).toMatchObject({ epoch: { term: 1, plan: 1 }, pipeline: 0, step: 3, stageUs: [2] });
  expect(first).toMatchObject({ sequence: 1, scores: [{ token: 11, finite: true }, { finite: false }] });
  expect(first?.drawn).toBeUndefined();
  expect(second).toMatchObject({
    sequence: 2,
    drawnPosition: 7,
    drawn: [{ token: 42, rank: 2 }],
    scores: [],
  });
  expect(int32FromBytes(second!.drawn![0]!.topTokens as Buffer)).toEqual(Int32Array.of(42, 4));
  expect(float32FromBytes(second!.drawn![0]!.topLogprobs as Buffer)).toEqual(Float32Array.of(-0.25, -3));
});

test("sequences with a value that is not finite are named, whether it was drawn or scored", () => {
  const good = { token: 1, finite: true };
  const bad = { finite: false };
  const sequences = [
    { sequence: 1, drawn: [good], scores: [good, bad] },
    { sequence: 2, drawn: [good], scores: [good] },
    { sequence: 3, drawn: [good, bad], scores: [] },
    { sequence: 4, scores: [] },
  ];
  expect(nonFiniteSequences(sequences)).toEqual([1, 3]);
});

const draft = headerOf(7, [
  rowsOf(1, [10, 11, 12, 13], {
    newBlocks: bytesFromInt32([4, 5]),
    validLength: 3,
    sampling: greedy,
    draftRows: 2,
  }),
  rowsOf(2, [20], { newBlocks: bytesFromInt32([6]), sampling: greedy }),
]);

test("behind a draft's rows is drawn by one request, from the last decided row on", () => {
  const input = decodeStep(draft, none, tables(), format);
  expect(input.sequences.map(({ rowCount, startPosition }) => [rowCount, startPosition])).toEqual([
    [4, 3],
    [1, 0],
  ]);
  expect(input.samples).toMatchObject([
    { row: 1, position: 5, draft: Int32Array.of(12, 13) },
    { row: 4, position: 1, draft: new Int32Array(0) },
  ]);
});

test.each([
  ["none of a draft", [40, 50], [40], [50]],
  ["a part of it", [12, 40, 50], [12, 40], [50]],
  ["all of it", [12, 13, 40, 50], [12, 13, 40], [50]],
])("results that confirm %s go to the sequences they belong to", (_, tokens, first, second) => {
  const samples = tokens.map((token) => ({ ...nothing, token }));
  const { result } = resultFrame(draft, { activations: null, samples, scores: [], computeUs: 1 });
  expect(result.sequences.map(({ drawn }) => drawn!.map(({ token }) => token))).toEqual([first, second]);
  expect(result.sequences.map(({ drawnPosition }) => drawnPosition)).toEqual([5, 1]);
});

test("nothing is drawn behind a value that is not finite, also when its token is the draft's", () => {
  const samples = [
    { ...nothing, token: 12 },
    { ...nothing, token: 13, finite: false },
    { ...nothing, token: 50 },
  ];
  const { result } = resultFrame(draft, { activations: null, samples, scores: [], computeUs: 1 });
  expect(result.sequences.map(({ drawn }) => drawn!.map(({ finite }) => finite))).toEqual([
    [true, false],
    [true],
  ]);
  expect(nonFiniteSequences(result.sequences)).toEqual([1]);
});

test.each<[string, Partial<SequenceRows__Output>, string]>([
  ["without sampling", { sampling: null }, "sequence 1 has 2 draft rows and no sampling: expected 0"],
  ["with no decided row", { draftRows: 4 }, "sequence 1 has 4 draft rows among 4 rows: expected at most 3"],
  [
    "within a context",
    { context: { length: 4, maskPosition: -1 }, validLength: 0, draftRows: 3 },
    "sequence 1 has 3 draft rows from 1 on, in a context of 4: expected them behind it",
  ],
])("draft rows %s are refused and the tables have not changed", (_, changes, message) => {
  const subject = tables();
  const [rows] = draft.sequences;
  const wrong = headerOf(7, [{ ...rows!, ...changes }]);
  expect(() => decodeStep(wrong, none, subject, format)).toThrow(message);
  expect(subject.sequenceCount).toBe(0);
});

test("more draft rows than any coordinator sends are refused", () => {
  const ids = Array.from({ length: maxDraftRows + 2 }, (_, i) => i);
  const newBlocks = bytesFromInt32([0, 1, 2, 3, 4]);
  const rows = rowsOf(1, ids, { newBlocks, sampling: greedy, draftRows: maxDraftRows + 1 });
  const wide = { ...format, maxRows: 32 };
  expect(() => decodeStep(headerOf(1, [rows]), none, tables(), wide)).toThrow(
    `sequence 1 has ${maxDraftRows + 1} draft rows among ${ids.length} rows: expected at most ${maxDraftRows}`,
  );
  const most = { ...rows, draftRows: maxDraftRows };
  expect(decodeStep(headerOf(1, [most]), none, tables(), wide).samples).toHaveLength(1);
});

test("a later stage checks the tokens of a draft too, which it draws behind", () => {
  const [rows] = draft.sequences;
  const wrong = headerOf(7, [{ ...rows!, tokenIds: bytesFromInt32([10, 11, 12, 100]) }]);
  const later = { ...format, first: false };
  expect(() => decodeStep(wrong, Buffer.alloc(64), tables(), later)).toThrow("sequence 1 holds token 100");
});

test("a request id longer than any that the API accepts is refused", () => {
  const subject = tables();
  const longest = "i".repeat(maxLoggedIdLength);
  const step = (requestId: string) =>
    headerOf(1, [rowsOf(1, [10], { requestId, newBlocks: bytesFromInt32([4]) })]);
  expect(() => decodeStep(step(`${longest}i`), none, subject, format)).toThrow(
    "sequence 1 has a request id of 129 characters: expected at most 128",
  );
  expect(subject.sequenceCount).toBe(0);
  decodeStep(step(longest), none, subject, format);
  expect(subject.requestIdOf(1)).toBe(longest);
});

test("an engine that gives too few results is found out", () => {
  const output = { activations: null, samples: [], scores: [], computeUs: 1 };
  expect(() => resultFrame(header, output)).toThrow("fewer results");
});

test("the frame for the next stage carries the header with one more compute time, and a checksum", () => {
  const activations = Buffer.from("activations");
  const came = { ...header, stageUs: [11] };
  expect(stepFrame(came, activations, 500.4)).toEqual({
    step: { header: { ...header, stageUs: [11, 500] }, activations, checksum: checksum(activations) },
  });
  expect(stepFrame(came, activations, 1e12).step?.header?.stageUs).toEqual([11, 2 ** 32 - 1]);
});
