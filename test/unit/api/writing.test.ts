/** How long answers are written: the text in pieces, and the pieces in turns. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { jsonText, Later, Slices, sliced } from "../../../coordinator/api/json-text.js";
import { inTurns } from "../../../coordinator/api/turns.js";

const written = (value: unknown) => [...jsonText(value)].join("");

describe("JSON text", () => {
  it("is what JSON.stringify writes", () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(JSON.parse(written(value))).toEqual(JSON.parse(JSON.stringify(value)));
      }),
    );
    expect(
      written({ a: undefined, b: [], c: {}, d: null, e: [null, 1], f: Number.NaN, "g\n": "\u2028" }),
    ).toBe(JSON.stringify({ b: [], c: {}, d: null, e: [null, 1], f: null, "g\n": "\u2028" }));
  });

  it("makes lists and values when it comes to them", () => {
    const made: number[] = [];
    const list = Array.from({ length: 200 }, (_, i) => i);
    const slices = sliced(list, (begin, end) => {
      made.push(end - begin);
      return list.slice(begin, end).map((id) => ({ id }));
    });
    const text = jsonText({
      first: 1,
      list: new Slices(slices),
      later: new Later(() => ({ made: [...made] })),
    });
    let all = "";
    for (const piece of text) {
      if (piece.includes('"first"')) expect(made).toEqual([]);
      all += piece;
    }
    expect(JSON.parse(all)).toEqual({
      first: 1,
      list: list.map((id) => ({ id })),
      later: { made: [64, 64, 64, 8] },
    });
    expect(written(new Slices([[], [1], [], [2, 3]]))).toBe("[1,2,3]");
  });
});

describe("turns", () => {
  it("between two turns of the event loop one piece of work goes on, however many there are", async () => {
    let turns = 0;
    let running = true;
    const count = () => {
      turns++;
      if (running) setImmediate(count);
    };
    setImmediate(count);
    /** The turn in which each item was made; an item takes longer than a share. */
    const madeIn: number[] = [];
    function* work() {
      for (let i = 0; i < 5; i++) {
        for (const end = performance.now() + 6; performance.now() < end; );
        madeIn.push(turns);
        yield i;
      }
    }
    const results = await Promise.all(
      Array.from({ length: 8 }, async () => {
        const items: number[] = [];
        for await (const item of inTurns(work())) items.push(item);
        return items;
      }),
    );
    running = false;
    expect(results).toEqual(Array.from({ length: 8 }, () => [0, 1, 2, 3, 4]));
    const perTurn = new Map<number, number>();
    for (const turn of madeIn) perTurn.set(turn, (perTurn.get(turn) ?? 0) + 1);
    expect(Math.max(...perTurn.values())).toBe(1);
  });
});
