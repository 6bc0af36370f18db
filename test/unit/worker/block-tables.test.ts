import { expect, test } from "vitest";
import { BlockTables, type TableChange } from "../../../worker/kv-cache/block-tables.js";

const change = (
  sequence: number,
  validLength: number,
  rowCount: number,
  newBlocks: number[] = [],
  requestId = "",
): TableChange => ({ sequence, requestId, validLength, rowCount, newBlocks: Int32Array.from(newBlocks) });

const tables = () => new BlockTables(8, 4);

test("a table grows by what each step appends and covers exactly the step's rows", () => {
  const subject = tables();
  expect(subject.apply([], [change(1, 0, 4, [5])])).toEqual([Int32Array.of(5)]);
  expect(subject.apply([], [change(1, 4, 1, [2]), change(2, 0, 3, [7])])).toEqual([
    Int32Array.of(5, 2),
    Int32Array.of(7),
  ]);
  expect(subject.apply([], [change(1, 5, 7, [0, 3])])).toEqual([Int32Array.of(5, 2, 0)]);
  expect(subject.apply([], [change(1, 12, 4)])).toEqual([Int32Array.of(5, 2, 0, 3)]);
});

test("a table keeps the name of its request, which comes with the first rows, until the sequence ends", () => {
  const subject = tables();
  subject.apply([], [change(1, 0, 4, [5], "req-a"), change(2, 0, 1, [6], "req-b")]);
  subject.apply([], [change(1, 4, 1, [7])]);
  expect([subject.requestIdOf(1), subject.requestIdOf(2)]).toEqual(["req-a", "req-b"]);
  subject.apply([1], [change(2, 1, 1)]);
  expect([subject.requestIdOf(1), subject.requestIdOf(2)]).toEqual(["", "req-b"]);
});

test("a shorter valid length truncates: rows start there and the blocks stay", () => {
  const subject = tables();
  subject.apply([], [change(1, 0, 8, [1, 2])]);
  expect(subject.apply([], [change(1, 3, 1)])).toEqual([Int32Array.of(1)]);
  expect(subject.apply([], [change(1, 4, 4)])).toEqual([Int32Array.of(1, 2)]);
});

test("an ended sequence is dropped before the step, so its number can begin anew", () => {
  const subject = tables();
  subject.apply([], [change(1, 0, 8, [1, 2]), change(2, 0, 1, [3])]);
  expect(subject.apply([1, 99], [change(1, 0, 1, [4])])).toEqual([Int32Array.of(4)]);
  expect(subject.sequenceCount).toBe(2);
});

test("a sequence may begin with valid tokens: their blocks are shared", () => {
  expect(tables().apply([], [change(3, 8, 1, [6, 7, 0])])).toEqual([Int32Array.of(6, 7, 0)]);
});

test("slots of a prefix stand in front of every sequence's own", () => {
  const subject = new BlockTables(8, 4, 6);
  expect(subject.apply([], [change(1, 0, 2, [5, 6])])).toEqual([Int32Array.of(5, 6)]);
  expect(() => subject.apply([], [change(1, 2, 1)])).toThrow(
    "needs slots for a prefix of 6, 2 valid tokens and 1 rows: its table of 2 blocks holds 8",
  );
  expect(subject.apply([], [change(1, 2, 1, [0])])).toEqual([Int32Array.of(5, 6, 0)]);
});

test.each([
  ["rows beyond the table", change(1, 4, 5, [2]), "needs slots for 4 valid tokens and 5 rows"],
  ["an unknown block", change(1, 4, 1, [8]), "names block 8: the stage has 8 blocks"],
  ["a negative block", change(1, 4, 1, [-1]), "names block -1"],
  ["no rows", change(1, 4, 0), "has 0 rows"],
  ["more blocks than there are", change(1, 4, 1, [1, 1, 1, 1, 1, 1, 1, 1]), "has 9 blocks"],
])("%s are refused and nothing has changed", (_name, wrong, message) => {
  const subject = tables();
  subject.apply([], [change(1, 0, 4, [5])]);
  expect(() => subject.apply([1], [change(2, 0, 1, [3]), { ...wrong, sequence: 2 }])).toThrow("twice");
  expect(() => subject.apply([], [change(2, 0, 1, [3]), wrong])).toThrow(message);
  expect(subject.sequenceCount).toBe(1);
  expect(subject.apply([], [change(1, 0, 4)])).toEqual([Int32Array.of(5)]);
});
