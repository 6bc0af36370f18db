import { expect, test } from "vitest";
import { EpochGate } from "../../../worker/control/epoch-gate.js";

const epoch = (term: number, plan: number) => ({ term, plan });

test("an assignment is obeyed only when newer than any before it", () => {
  const gate = new EpochGate();
  expect(gate.admitAssign(epoch(1, 1))).toBe(true);
  expect(gate.admitAssign(epoch(1, 1))).toBe(false);
  expect(gate.admitAssign(epoch(1, 3))).toBe(true);
  expect(gate.admitAssign(epoch(1, 2))).toBe(false);
  expect(gate.admitAssign(epoch(2, 1))).toBe(true);
  expect(gate.highestTerm).toBe(2);
});

test("a leader of an older term is not obeyed", () => {
  const gate = new EpochGate();
  expect(gate.admitTerm(5)).toBe(true);
  expect(gate.admitTerm(5)).toBe(true);
  expect(gate.admitTerm(4)).toBe(false);
  expect(gate.admitAssign(epoch(4, 9))).toBe(false);
  expect(gate.admitRelease(epoch(4, 9))).toBe(false);
  expect(gate.highestTerm).toBe(5);
});

test("a release ends its epoch and earlier ones, not later ones", () => {
  const gate = new EpochGate();
  gate.admitAssign(epoch(1, 2));
  expect(gate.admitRelease(epoch(1, 1))).toBe(false);
  expect(gate.admitRelease(epoch(1, 2))).toBe(true);
  expect(gate.admitRelease(epoch(1, 3))).toBe(true);
  expect(gate.admitAssign(epoch(1, 3))).toBe(false);
  expect(gate.newest).toEqual(epoch(1, 3));
});
