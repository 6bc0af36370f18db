import { expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import { HeldRequests } from "../../../coordinator/held-requests.js";
import { generation } from "../../support/fake-cluster.js";

/** A clock that moves `costMs` per admission, and turns of the event loop that the test takes. */
function setUp(costMs = 0) {
  const state = { ready: false, nowMs: 0, admitted: [] as string[], turns: [] as (() => void)[] };
  const held = new HeldRequests({
    ready: () => state.ready,
    admit: ({ id }, decided) => {
      state.admitted.push(`${id}${decided.length === 0 ? "" : ` behind ${decided[0]!.length}`}`);
      state.nowMs += costMs;
    },
    later: (run) => state.turns.push(run),
    nowMs: () => state.nowMs,
  });
  return { held, state, turn: () => state.turns.shift()?.() };
}

it("keeps requests until the core is ready, then hands them on in their order", () => {
  const { held, state, turn } = setUp();
  held.add(generation("a", [1]), [[5, 6]]);
  held.add(generation("b", [1]));
  held.release();
  expect([state.turns.length, held.any]).toEqual([0, true]);
  state.ready = true;
  held.release();
  held.release();
  expect(state.turns).toHaveLength(1);
  // Whoever comes before the turn stands behind them.
  held.add(generation("c", [1]));
  turn();
  expect(state.admitted).toEqual(["a behind 2", "b", "c"]);
  expect([held.any, state.turns.length]).toEqual([false, 0]);
});

it("lets the event loop go on after some milliseconds, and goes on itself whatever becomes of the pipeline", () => {
  const { held, state, turn } = setUp(2);
  for (let i = 0; i < 5; i++) held.add(generation(`r${i}`, [1]));
  state.ready = true;
  held.release();
  turn();
  expect(state.admitted).toEqual(["r0", "r1"]);
  state.ready = false;
  turn();
  turn();
  expect(state.admitted).toEqual(["r0", "r1", "r2", "r3", "r4"]);
});

it("forgets one that was cancelled", () => {
  const { held, state, turn } = setUp();
  held.add(generation("a", [1]));
  held.add(generation("b", [1]));
  expect(held.remove(requestId("a"))).toBe(true);
  expect(held.remove(requestId("a"))).toBe(false);
  state.ready = true;
  held.release();
  turn();
  expect(state.admitted).toEqual(["b"]);
});

it("gives them up after the limit, and counts anew for the next ones", () => {
  const { held, state } = setUp();
  held.add(generation("a", [1]));
  state.nowMs = 1_000;
  expect(held.overdue(1_000)).toBeNull();
  state.nowMs = 1_001;
  const overdue = held.overdue(1_000)!;
  expect(overdue.ids).toEqual(["a"]);
  expect(overdue.error).toMatchObject({
    code: "worker_lost",
    message: expect.stringContaining("within 1 s"),
  });
  expect(held.any).toBe(false);
  state.nowMs = 5_000;
  held.add(generation("b", [1]));
  expect(held.overdue(1_000)).toBeNull();
});
