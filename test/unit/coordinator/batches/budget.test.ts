/** The tokens that a batch may use. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { mostTokens, TokenBudget } from "../../../../coordinator/batches/budget.js";

const turn = () => new Promise((resolve) => setImmediate(resolve));

describe("a token budget", () => {
  it("is exceeded by one line's tokens at most, and keeps nobody waiting, whatever lines use", async () => {
    const line = fc.record({
      most: fc.integer({ min: 1, max: 50 }),
      share: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 1, max: 400 }),
        fc.array(line, { minLength: 1, maxLength: 60 }),
        fc.infiniteStream(fc.nat()),
        async (limit, lines, random) => {
          let used = 0;
          const budget = new TokenBudget(limit, () => used);
          const running: { reserved: number; uses: number }[] = [];
          let entered = 0;
          let refused = 0;
          for (const { most, share } of lines) {
            void budget.reserve(most).then((reserved) => {
              entered++;
              // Nothing is reserved for a line that may not begin.
              if (reserved === 0) refused++;
              else running.push({ reserved, uses: Math.floor(share * most) });
            });
          }
          for (await turn(); running.length > 0; await turn()) {
            const [ended] = running.splice(random.next().value! % running.length, 1);
            used += ended!.uses;
            budget.giveBack(ended!.reserved);
          }
          expect(entered).toBe(lines.length);
          expect(used).toBeLessThan(limit + 50);
          expect(refused === 0 || budget.spent).toBe(true);
        },
      ),
      { numRuns: 200, seed: 7 },
    );
  });

  it("lets lines begin side by side as long as all of them fit", async () => {
    const budget = new TokenBudget(100, () => 0);
    const begun: number[] = [];
    for (let line = 0; line < 5; line++) void budget.reserve(40).then(() => begun.push(line));
    await turn();
    expect(begun).toEqual([0, 1, 2]);
    budget.giveBack(40);
    await turn();
    expect(begun).toEqual([0, 1, 2, 3]);
  });

  it("without a limit is never spent, and nobody waits", async () => {
    const budget = new TokenBudget(null, () => 1e9);
    expect(budget.spent).toBe(false);
    expect(await Promise.all([budget.reserve(1e9), budget.reserve(1e9)])).toEqual([0, 0]);
  });
});

describe("the tokens that a request uses at most", () => {
  const most = (body: object) => mostTokens(Buffer.from(JSON.stringify(body)), 1_000);
  const around = (body: object) => JSON.stringify(body).length + 256;

  it.each([
    [{ messages: [{ role: "user", content: "hi" }], max_tokens: 20 }, 1],
    [{ messages: [], max_completion_tokens: 20, max_tokens: 900 }, 1],
    [{ prompt: "abc", max_tokens: 20, n: 3 }, 3],
    [{ prompt: ["a", "b"], max_tokens: 20, n: 2 }, 4],
    [{ prompt: [5, 6, 7], max_tokens: 20 }, 1],
  ])("of %o are those of its prompt and reply, %i times", (body, times) => {
    expect(most(body)).toBe(times * (around(body) + 20));
  });

  it("are no more than the context holds, and all of it where the request sets no bound", () => {
    expect(most({ prompt: "a", max_tokens: 5_000 })).toBe(1_000);
    expect(most({ prompt: "a", n: 2 })).toBe(2_000);
    expect(mostTokens(Buffer.from("{"), 1_000)).toBe(0);
  });
});
