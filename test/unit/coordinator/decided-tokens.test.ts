import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import {
  DecidedTokens,
  maxTokensPerRequest,
  tokenBytes,
  tokensFromBytes,
} from "../../../coordinator/queue/decided-tokens.js";

const a = requestId("a");

describe("tokens on their way into the ledger", () => {
  it("go in one write per choice, each numbered by its position", () => {
    const tokens = new DecidedTokens();
    tokens.note(a, 0, [5]);
    tokens.note(a, 1, [7]);
    tokens.note(a, 0, [6]);
    expect(tokens.take()).toEqual([
      { id: a, choice: 0, position: 0, tokens: [5, 6] },
      { id: a, choice: 1, position: 0, tokens: [7] },
    ]);
    tokens.note(a, 0, [8]);
    tokens.settle(true);
    expect(tokens.take()).toEqual([{ id: a, choice: 0, position: 2, tokens: [8] }]);
    tokens.settle(true);
    expect(tokens.isDue).toBe(false);
  });

  it("are written again, with those that came meanwhile, when a write failed", () => {
    const tokens = new DecidedTokens();
    tokens.note(a, 0, [5]);
    tokens.take();
    tokens.note(a, 0, [6]);
    tokens.settle(false);
    expect(tokens.take()).toEqual([{ id: a, choice: 0, position: 0, tokens: [5, 6] }]);
  });

  it("that stand in the ledger already are not written once more", () => {
    const tokens = new DecidedTokens();
    tokens.restore(a, [3, 0]);
    tokens.note(a, 0, [1, 2]);
    expect(tokens.isDue).toBe(false);
    tokens.note(a, 0, [3, 4]);
    tokens.note(a, 1, [9]);
    expect(tokens.take()).toEqual([
      { id: a, choice: 0, position: 3, tokens: [4] },
      { id: a, choice: 1, position: 0, tokens: [9] },
    ]);
  });

  it("of a request that ended are forgotten, also while they are being written", () => {
    const tokens = new DecidedTokens();
    tokens.note(a, 0, [5]);
    tokens.note(a, 2, [6]);
    tokens.take();
    tokens.note(a, 0, [7]);
    expect(tokens.forget(a)).toEqual([0, 2]);
    tokens.settle(false);
    expect(tokens.isDue).toBe(false);
    expect(tokens.forget(a)).toEqual([]);
  });

  it("are so many of a request at most, and of those the first ones without a gap", () => {
    const tokens = new DecidedTokens();
    const many = Array.from({ length: maxTokensPerRequest - 1 }, (_, i) => i);
    tokens.note(a, 0, many);
    tokens.note(a, 0, [1, 2]);
    tokens.note(a, 0, [3]);
    const writes = tokens.take();
    expect(writes).toHaveLength(1);
    expect(writes[0]!.tokens).toEqual(many);
    tokens.settle(true);
    tokens.note(a, 1, [1]);
    expect(tokens.take()).toEqual([{ id: a, choice: 1, position: 0, tokens: [1] }]);
  });

  it("wait in a bounded number while Redis is away, in writes of a bounded number", () => {
    const tokens = new DecidedTokens();
    const requests = 2_000;
    for (let round = 0; round < 200; round++) {
      for (let i = 0; i < requests; i++) tokens.note(requestId(`r${i}`), 0, [round]);
      expect(tokens.take().length).toBeLessThanOrEqual(256);
      tokens.settle(false);
    }
    let kept = 0;
    const lengths = new Map<string, number>();
    while (tokens.isDue) {
      for (const { id, tokens: some, position } of tokens.take()) {
        expect(position).toBe(lengths.get(id) ?? 0);
        lengths.set(id, position + some.length);
        kept += some.length;
      }
      tokens.settle(true);
    }
    expect(kept).toBeLessThanOrEqual(262_144);
    expect(kept).toBeGreaterThan(250_000);
    // Place that has become free is used again.
    tokens.note(requestId("next"), 0, [1]);
    expect(tokens.isDue).toBe(true);
  });

  it("end up in the ledger in order, whatever fails, repeats or ends on the way", () => {
    const action = fc.oneof(
      fc.record({ do: fc.constant("note" as const), choice: fc.nat({ max: 1 }), count: fc.nat({ max: 4 }) }),
      fc.record({ do: fc.constant("write" as const), stored: fc.boolean() }),
      fc.record({ do: fc.constant("restart" as const) }),
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 40 }), (actions) => {
        const decided = (choice: number, position: number) => 10 * position + choice;
        const stored = [Buffer.alloc(0), Buffer.alloc(0)];
        const counts = [0, 0];
        let tokens = new DecidedTokens();
        for (const step of actions) {
          if (step.do === "note") {
            const begin = counts[step.choice]!;
            tokens.note(
              a,
              step.choice,
              Array.from({ length: step.count }, (_, i) => decided(step.choice, begin + i)),
            );
            counts[step.choice] = begin + step.count;
          } else if (step.do === "write") {
            for (const { choice, position, tokens: some } of tokens.take()) {
              if (!step.stored) continue;
              const end = 4 * (position + some.length);
              const longer = Buffer.alloc(Math.max(end, stored[choice]!.length));
              stored[choice]!.copy(longer);
              tokenBytes(some).copy(longer, 4 * position);
              stored[choice] = longer;
            }
            tokens.settle(step.stored);
          } else {
            // A new process: reads what is there and comes to the same tokens once more.
            tokens = new DecidedTokens();
            const read = stored.map((bytes) => tokensFromBytes(bytes, 10_000, 10_000));
            tokens.restore(
              a,
              read.map(({ length }) => length),
            );
            counts.fill(0);
          }
          for (const [choice, bytes] of stored.entries()) {
            const read = Array.from(tokensFromBytes(bytes, 10_000, 10_000));
            expect(read).toEqual(read.map((_, position) => decided(choice, position)));
          }
        }
      }),
      { numRuns: 1_000 },
    );
  });
});

describe("the bytes of tokens", () => {
  it("are read up to the first gap, to one that does not exist, and to the limit", () => {
    const bytes = Buffer.concat([tokenBytes([0, 5, 9]), Buffer.alloc(4), tokenBytes([1])]);
    expect([...tokensFromBytes(bytes, 10, 100)]).toEqual([0, 5, 9]);
    expect([...tokensFromBytes(bytes, 9, 100)]).toEqual([0, 5]);
    expect([...tokensFromBytes(bytes, 10, 2)]).toEqual([0, 5]);
    expect([...tokensFromBytes(bytes.subarray(0, 7), 10, 100)]).toEqual([0]);
  });
});
