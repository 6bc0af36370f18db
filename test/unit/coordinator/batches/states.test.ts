import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { finalStatuses, isFinal } from "../../../../coordinator/batches/batch.js";
import { type BatchEvent, type BatchState, nextState } from "../../../../coordinator/batches/states.js";

const events = ["valid", "invalid", "answered", "expire", "cancel", "merged"] as const satisfies BatchEvent[];
const allowed: Record<string, string[]> = {
  validating: ["failed", "in_progress", "finalizing", "cancelling"],
  in_progress: ["finalizing", "cancelling"],
  finalizing: ["completed", "expired"],
  cancelling: ["cancelled"],
};
const begin: BatchState = { status: "validating", end: null };
const reached = (...list: BatchEvent[]) =>
  list.reduce<BatchState>((state, event) => nextState(state, event) ?? state, begin);

describe("states of a batch", () => {
  it("only follow each other as the API says, whatever happens in whatever order", () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...events), { maxLength: 12 }), (list) => {
        let state = begin;
        for (const event of list) {
          const next = nextState(state, event);
          if (next === null) continue;
          expect(allowed[state.status], `${state.status} -> ${next.status}`).toContain(next.status);
          // How it ends is decided once.
          if (state.end !== null) expect(next.end).toBe(state.end);
          state = next;
        }
        seen.add(state.status);
      }),
      { numRuns: 2_000, seed: 7 },
    );
    expect([...seen].sort()).toEqual([...Object.keys(allowed), ...finalStatuses].sort());
  });

  it("are final once they are final", () => {
    for (const status of finalStatuses) {
      for (const event of events) {
        for (const end of [null, "completed", "expired", "cancelled"] as const) {
          expect(nextState({ status, end }, event)).toBeNull();
        }
      }
    }
  });

  it("reach an end from everywhere", () => {
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...events), { maxLength: 8 }), (list) => {
        const state = reached(...list);
        const ended = isFinal(state.status)
          ? state
          : ["expire", "merged"].reduce<BatchState>(
              (now, event) => nextState(now, event as BatchEvent) ?? now,
              state,
            );
        expect(isFinal(ended.status)).toBe(true);
      }),
      { seed: 9 },
    );
  });

  it("end as what came first said", () => {
    expect(reached("valid", "answered", "merged").status).toBe("completed");
    expect(reached("invalid").status).toBe("failed");
    expect(reached("valid", "expire", "cancel", "merged").status).toBe("expired");
    expect(reached("valid", "cancel", "expire", "merged").status).toBe("cancelled");
    expect(reached("valid", "answered", "cancel", "merged").status).toBe("completed");
    expect(reached("cancel", "valid", "merged").status).toBe("cancelled");
    expect(reached("merged").status).toBe("validating");
  });
});
