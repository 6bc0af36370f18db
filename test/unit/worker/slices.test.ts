/** A stage and the slices that pass it: what it takes, what it leaves to others, and what it refuses. */
import { describe, expect, test } from "vitest";
import { bytesFromInt32 } from "../../../common/bytes.js";
import type { LinkFrame__Output } from "../../../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { SequenceRows__Output } from "../../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import { stepFrames } from "../../../proto/link/frames.js";
import { decodeStep, type StepFormat, stepFrame } from "../../../worker/codec.js";
import { BlockTables } from "../../../worker/kv-cache/block-tables.js";
import { type SliceFormat, SliceReader } from "../../../worker/slices.js";
import { greedy, headerOf, rowsOf } from "./support/steps.js";

const none = Buffer.alloc(0);
const rowBytes = 8;
/** Layers [2, 4) of 6. */
const middle: SliceFormat = {
  layerBegin: 2,
  layerEnd: 4,
  layerCount: 6,
  rowBytes,
  tokenCount: 100,
  contextRows: 5,
};
const first: SliceFormat = { ...middle, layerBegin: 0, layerEnd: 2 };
const context = { length: 3, maskPosition: 1 };
const ids = [10, 11, 12];

interface Changes {
  rows?: Partial<SequenceRows__Output>;
  others?: SequenceRows__Output[];
  ended?: number[];
}

const sliceHeader = (
  layerBegin: number,
  layerEnd: number,
  { rows, others = [], ended = [] }: Changes = {},
) => {
  const content = layerBegin === 0 ? {} : { tokenIds: none };
  const changes = { context, ...content, ...rows };
  return headerOf(1, others, { ended, slice: { rows: rowsOf(1, ids, changes), layerBegin, layerEnd } });
};
const arrived = Buffer.alloc(ids.length * rowBytes, 7);

/** A stage in the middle that has the rows of sequence 1. */
function waiting(): SliceReader {
  const reader = new SliceReader(middle);
  reader.read(sliceHeader(0, 2), arrived);
  return reader;
}

describe("a stage", () => {
  test("computes the slices of its own layers, with token ids for the first one only", () => {
    const reader = new SliceReader(first);
    const table = Int32Array.of(4);
    const place = { rowCount: 3, startPosition: 0, contextLength: 3, maskPosition: 1, blockTable: table };
    const begin = reader.read(sliceHeader(0, 1, { rows: { newBlocks: bytesFromInt32([4]) } }), none)!;
    expect(begin.change).toMatchObject({ sequence: 1, validLength: 0, rowCount: 3 });
    expect(begin.change.newBlocks).toEqual(Int32Array.of(4));
    expect(begin.input!(table)).toEqual({
      rows: place,
      layerBegin: 0,
      layerEnd: 1,
      tokenIds: Int32Array.of(...ids),
      activations: null,
    });
    expect(reader.parkedSequence).toBe(1);
    const end = reader.read(sliceHeader(1, 2), none)!;
    expect(end.input!(table)).toEqual({
      rows: place,
      layerBegin: 1,
      layerEnd: 2,
      tokenIds: null,
      activations: null,
    });
    expect(reader.parkedSequence).toBeNull();
  });

  test("takes rows that arrive and computes nothing of them yet", () => {
    const reader = new SliceReader(middle);
    expect(reader.read(sliceHeader(0, 1), none)!.input).toBeNull();
    expect(reader.parkedSequence).toBeNull();
    const read = reader.read(sliceHeader(1, 2), arrived)!;
    expect(read.input!(Int32Array.of(0))).toMatchObject({
      layerBegin: 2,
      layerEnd: 2,
      tokenIds: null,
      activations: arrived,
    });
    expect(reader.parkedSequence).toBe(1);
    expect(reader.read(sliceHeader(2, 4), none)!.input!(Int32Array.of(0))).toMatchObject({
      layerBegin: 2,
      layerEnd: 4,
      activations: null,
    });
    expect(reader.read(sliceHeader(4, 6), none)!.input).toBeNull();
  });

  test("drops the rows of a context that has ended, and takes the next one's in the same step", () => {
    const reader = waiting();
    reader.read(headerOf(2, [rowsOf(3, [1])]), none);
    expect(reader.parkedSequence).toBe(1);
    reader.read(sliceHeader(0, 2, { ended: [1], rows: { sequence: 2 } }), arrived);
    expect(reader.parkedSequence).toBe(2);
    reader.read(headerOf(3, [rowsOf(3, [1])], { ended: [2] }), none);
    expect(reader.parkedSequence).toBeNull();
  });
});

const refused: [string, SliceReader, ReturnType<typeof headerOf>, Buffer, string][] = [
  [
    "no rows",
    new SliceReader(first),
    headerOf(1, [], { slice: { rows: null, layerBegin: 0, layerEnd: 1 } }),
    none,
    "a slice has no rows",
  ],
  ["no layers", waiting(), sliceHeader(2, 2), none, "layers [2, 2): expected at least one of the model's 6"],
  ["layers beyond the model", waiting(), sliceHeader(4, 7), none, "layers [4, 7): expected at least one"],
  [
    "layers of two stages",
    waiting(),
    sliceHeader(2, 5),
    none,
    "layers [2, 5): the stage has [2, 4): expected all or none of them there",
  ],
  [
    "layers of this stage and the one before",
    waiting(),
    sliceHeader(1, 3),
    none,
    "layers [1, 3): the stage has [2, 4)",
  ],
  [
    "layers out of order",
    waiting(),
    sliceHeader(3, 4),
    none,
    "expected its rows to wait at layer 3, found those of sequence 1 at layer 2",
  ],
  [
    "rows that never came",
    new SliceReader(middle),
    sliceHeader(2, 3),
    none,
    "expected its rows to wait at layer 2, found none",
  ],
  [
    "another sequence's rows",
    waiting(),
    sliceHeader(2, 3, { rows: { sequence: 2 } }),
    none,
    "slice of sequence 2 for layers [2, 3): expected its rows to wait at layer 2, found those of sequence 1",
  ],
  [
    "another number of rows",
    waiting(),
    sliceHeader(2, 3, { rows: { rowCount: 2, context: { length: 2, maskPosition: 1 } } }),
    none,
    "has 2 rows: 3 wait in the stage",
  ],
  [
    "arriving rows while others wait",
    waiting(),
    sliceHeader(0, 2, { rows: { sequence: 2 } }),
    arrived,
    "rows of sequence 1 wait at layer 2",
  ],
  [
    "a later stage's layers while its rows wait here",
    waiting(),
    sliceHeader(4, 6),
    none,
    "slice of sequence 1 for layers [4, 6): its rows wait at layer 2",
  ],
  [
    "a part of a context",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { context: { length: 4, maskPosition: 1 } } }),
    none,
    "slice of sequence 1 has the rows [0, 3): expected a context's, [0, 4)",
  ],
  [
    "rows behind a context",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { validLength: 3 } }),
    none,
    "has the rows [3, 6): expected a context's",
  ],
  [
    "rows without a context",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { context: null } }),
    none,
    "expected a context's",
  ],
  [
    "more rows than there is room for",
    new SliceReader({ ...first, contextRows: 2 }),
    sliceHeader(0, 1),
    none,
    "slice of sequence 1 has 3 rows: expected 1 to 2",
  ],
  [
    "rows for a causal model",
    new SliceReader({ ...first, contextRows: 0 }),
    sliceHeader(0, 1),
    none,
    "has 3 rows: expected 1 to 0",
  ],
  [
    "a token to draw",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { sampling: greedy } }),
    none,
    "asks for results",
  ],
  [
    "tokens to score",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { scoreTargets: bytesFromInt32([1, 2, 3]) } }),
    none,
    "asks for results",
  ],
  [
    "rows of a draft",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { draftRows: 1 } }),
    none,
    "asks for results",
  ],
  [
    "a mask behind its context",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { context: { length: 3, maskPosition: 3 } } }),
    none,
    "mask at 3: expected -1 to 2",
  ],
  [
    "too few token ids",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { tokenIds: bytesFromInt32([1]) } }),
    none,
    "sequence 1 has 1 token ids for 3 rows",
  ],
  [
    "a token that the model lacks",
    new SliceReader(first),
    sliceHeader(0, 1, { rows: { tokenIds: bytesFromInt32([1, 2, 100]) } }),
    none,
    "holds token 100: the model has 100",
  ],
  [
    "token ids once more",
    waiting(),
    sliceHeader(2, 3, { rows: { tokenIds: bytesFromInt32(ids) } }),
    none,
    "token ids come with the first slice only",
  ],
  [
    "missing activations",
    new SliceReader(middle),
    sliceHeader(0, 2),
    none,
    "0 bytes of activations came: expected 24",
  ],
  [
    "activations of no use",
    waiting(),
    sliceHeader(2, 3),
    arrived,
    "24 bytes of activations came: expected 0",
  ],
  ["activations alone", waiting(), headerOf(2, [rowsOf(3, [1])]), arrived, "came without one"],
  [
    "rows of the sequence whose context waits",
    waiting(),
    headerOf(2, [rowsOf(1, [1], { validLength: 3, context })]),
    none,
    "sequence 1 has rows in a step while its context waits at layer 2",
  ],
  [
    "rows of the sequence whose context arrives",
    new SliceReader(middle),
    sliceHeader(0, 2, { others: [rowsOf(1, [1], { validLength: 3, context })] }),
    arrived,
    "sequence 1 has rows in a step while its context waits at layer 2",
  ],
];

test.each(refused)(
  "%s is refused, and what waits has not changed",
  (_, reader, header, activations, message) => {
    const before = reader.parkedSequence;
    expect(() => reader.read(header, activations)).toThrow(message);
    expect(reader.parkedSequence).toBe(before);
  },
);

describe("a step with a slice", () => {
  const format: StepFormat = { first: true, last: true, stage: 0, rowBytes, tokenCount: 100, maxRows: 8 };
  const whole: SliceFormat = { ...middle, layerBegin: 0, layerEnd: 6 };

  test("brings the context's blocks first, and rows that go on with it", () => {
    const tables = new BlockTables(8, 2);
    const tail = rowsOf(1, [13], { validLength: 3, context, sampling: greedy });
    const other = rowsOf(2, [20], { newBlocks: bytesFromInt32([7]) });
    const header = sliceHeader(0, 6, {
      rows: { newBlocks: bytesFromInt32([4, 5]) },
      others: [other, tail],
    });
    const slice = new SliceReader(whole).read(header, none);
    const input = decodeStep(header, none, tables, format, slice);
    expect(input.slice).toMatchObject({
      layerBegin: 0,
      layerEnd: 6,
      rows: { blockTable: Int32Array.of(4, 5) },
    });
    expect(input.sequences).toMatchObject([
      { rowCount: 1, startPosition: 0, blockTable: Int32Array.of(7) },
      { rowCount: 1, startPosition: 3, contextLength: 3, blockTable: Int32Array.of(4, 5) },
    ]);
    expect(input.tokenIds).toEqual(Int32Array.of(20, 13));
    expect(input.samples).toMatchObject([{ row: 1, position: 4 }]);
  });

  test("may have nothing else, and nothing for this stage", () => {
    const tables = new BlockTables(8, 4);
    const header = sliceHeader(0, 2, { rows: { newBlocks: bytesFromInt32([4]) } });
    const stage = { ...middle, layerBegin: 4, layerEnd: 6 };
    const slice = new SliceReader(stage).read(header, none);
    const input = decodeStep(header, none, tables, { ...format, first: false }, slice);
    expect(input).toEqual({ sequences: [], tokenIds: null, activations: null, samples: [], scores: [] });
    expect(tables.sequenceCount).toBe(1);
  });

  test("needs rows when it has none", () => {
    expect(() => decodeStep(headerOf(1, []), none, new BlockTables(8, 4), format)).toThrow(
      "step has no rows",
    );
  });

  test.each([
    ["a block that is not there", { newBlocks: bytesFromInt32([8]) }, "names block 8"],
    ["too few blocks", {}, "its table of 0 blocks holds 0"],
    ["a request id that is too long", { requestId: "i".repeat(129) }, "a request id of 129 characters"],
  ])("with %s changes no table", (_, rows, message) => {
    const tables = new BlockTables(8, 4);
    const header = sliceHeader(0, 6, { rows, others: [rowsOf(2, [20], { newBlocks: bytesFromInt32([7]) })] });
    expect(() => decodeStep(header, none, tables, format, new SliceReader(whole).read(header, none))).toThrow(
      message,
    );
    expect(tables.sequenceCount).toBe(0);
  });

  test("goes on with a checksum of its own for the slice's rows", () => {
    const header = sliceHeader(0, 2);
    const frame = stepFrame(header, none, 7, arrived) as LinkFrame__Output;
    const read = stepFrames.read(frame);
    expect(read.bytes).toBe(arrived.byteLength);
    expect(read.content.sliceActivations).toEqual(arrived);
    stepFrames.verify(read.content);
    const damaged = { ...read.content, sliceActivations: Buffer.alloc(arrived.byteLength, 8) };
    expect(() => stepFrames.verify(damaged)).toThrow(/^slice activations of step 1 have CRC-32/);
  });
});
