/** The formula beside the batching benchmark's figures. */
import { describe, expect, it } from "vitest";
import { figuresBetween, hopsOf, predicted } from "../../../bench/batching.js";
import type { ClusterView } from "../../../coordinator/inference.js";

const view = (steps: number, stages: { steps: number; busySeconds: number }[]) =>
  ({ counters: { steps }, stages }) as unknown as ClusterView;

describe("figures between two samples", () => {
  it("divide what came by the steps of the coordinator, and busy time by each stage's own", () => {
    const from = { atMs: 1_000, count: 10, view: view(5, [{ steps: 4, busySeconds: 1 }]) };
    const to = { atMs: 3_000, count: 90, view: view(25, [{ steps: 20, busySeconds: 1.8 }]) };
    expect(figuresBetween(8, from, to)).toEqual({
      sequences: 8,
      tokensPerSecond: 40,
      perStep: 4,
      stageMs: [expect.closeTo(50)],
    });
  });

  it("are none while no stage has reported", () => {
    const sample = { atMs: 0, count: 0, view: view(0, [{ steps: 0, busySeconds: 0 }]) };
    expect(figuresBetween(1, sample, { ...sample, count: 3, view: view(3, sample.view.stages) })).toBeNull();
  });
});

describe("the formula", () => {
  const one = { sequences: 1, tokensPerSecond: 20, perStep: 1, stageMs: [18, 22] };

  it("takes the hops from one sequence", () => {
    expect(hopsOf([one])).toBe(10);
    expect(hopsOf([])).toBe(0);
    expect(predicted(one, 10)).toBe(20);
  });

  it("is bound by the way through all stages while few are in flight", () => {
    expect(predicted({ sequences: 4, tokensPerSecond: 0, perStep: 4, stageMs: [30, 40] }, 10)).toBe(50);
  });

  it("is bound by the slowest stage when it never waits", () => {
    expect(predicted({ sequences: 8, tokensPerSecond: 0, perStep: 2, stageMs: [30, 40] }, 10)).toBe(50);
  });
});
