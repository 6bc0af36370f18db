import fc from "fast-check";
import { describe, expect, it } from "vitest";
import {
  longestMatch,
  lookupWindow,
  NgramLookup,
  shortestMatch,
} from "../../../coordinator/scheduler/ngram-lookup.js";

/** A lookup that has followed a text from its first tokens on. */
function follow(text: readonly number[], begin = 0): NgramLookup {
  const tokens = text.slice(0, begin);
  const lookup = new NgramLookup(tokens, text.length + 8);
  lookup.catchUp();
  for (const token of text.slice(begin)) {
    tokens.push(token);
    lookup.advance();
  }
  return lookup;
}

/** The longest match of the text's end, the most recent of several; -1 when there is none. */
function naiveMatch(text: readonly number[]): { at: number; length: number } {
  let best = { at: -1, length: shortestMatch - 1 };
  for (let at = text.length - 1; at >= shortestMatch; at--) {
    let length = 0;
    while (length < longestMatch && length < at && text[at - 1 - length] === text[text.length - 1 - length])
      length++;
    if (length > best.length) best = { at, length };
  }
  return best;
}

describe("looking up what may come next", () => {
  it("finds what followed the last tokens before", () => {
    const lookup = follow([1, 2, 3, 4, 5, 9, 9, 2, 3]);
    expect(lookup.matchLength).toBe(2);
    expect(lookup.draft(3)).toEqual([4, 5, 9]);
  });

  it("prefers the longest match, and of equally long ones the most recent", () => {
    expect(follow([7, 1, 2, 3, 50, 8, 1, 2, 3, 60, 5, 2, 3, 70, 4, 8, 1, 2, 3]).draft(1)).toEqual([60]);
    expect(follow([1, 2, 50, 1, 2, 60, 9, 1, 2]).draft(1)).toEqual([60]);
  });

  it("expects nothing where the last two tokens have not stood together before", () => {
    for (const text of [[], [1], [1, 1], [1, 2], [1, 2, 3, 2, 1], [4, 1, 4]]) {
      const lookup = follow(text);
      expect([lookup.matchLength, lookup.draft(4)], `${text}`).toEqual([0, []]);
    }
  });

  it("goes on with its own guess where the match ends with the text", () => {
    expect(follow([5, 5, 5]).draft(4)).toEqual([5, 5, 5, 5]);
    expect(follow([1, 2, 3, 1, 2, 3, 1, 2]).draft(7)).toEqual([3, 1, 2, 3, 1, 2, 3]);
  });

  it("follows a match while it holds, and says whether it did", () => {
    const tokens = [1, 2, 3, 4, 9, 1, 2];
    const lookup = new NgramLookup(tokens, 32);
    lookup.catchUp();
    const held = [3, 4, 7, 1, 2].map((token) => {
      tokens.push(token);
      return [lookup.advance(), lookup.matchLength];
    });
    expect(held).toEqual([
      [true, 3],
      [true, 4],
      [false, 0],
      [false, 0],
      [false, 2],
    ]);
    // The more recent one of both.
    expect(lookup.draft(1)).toEqual([3]);
  });

  it("is the naive search, however the text came", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 32 }),
        fc.integer({ min: 0, max: 32 }),
        (text, begin) => {
          const whole = follow(text, text.length);
          const { at, length } = naiveMatch(text);
          expect(whole.matchLength).toBe(at < 0 ? 0 : length);
          expect(whole.draft(1)).toEqual(at < 0 ? [] : [text[at]]);
          // Followed token by token it may hold on to an older match, but only to one that has held.
          const followed = follow(text, Math.min(begin, text.length));
          const [guess] = followed.draft(1);
          const suffix = followed.matchLength;
          if (suffix === 0) return;
          const places = text.flatMap((token, place) => (token === guess && place >= suffix ? [place] : []));
          expect(
            places.some((place) =>
              text.slice(place - suffix, place).every((token, i) => token === text[text.length - suffix + i]),
            ),
          ).toBe(true);
        },
      ),
      { numRuns: 2_000, seed: 11 },
    );
  });

  it("searches the window of the most recent tokens, and no more memory than it has", () => {
    const piece = [1_000, 1_001, 1_002, 1_003];
    // No pair of the filling comes twice.
    const filling = (count: number) => Array.from({ length: count }, (_, i) => 10_000 + i);
    const near = [...piece, ...filling(lookupWindow - 100), ...piece.slice(0, 3)];
    expect(follow(near, 10).draft(1)).toEqual([1_003]);
    const far = [...piece, ...filling(lookupWindow + 100), ...piece.slice(0, 3)];
    expect(follow(far, 10).draft(1)).toEqual([]);
    expect(follow(far, far.length).draft(1)).toEqual([]);
    const again = [...piece, ...filling(3 * lookupWindow), ...piece, 5, 6, ...piece.slice(0, 2)];
    expect(follow(again, 10).draft(4)).toEqual([1_002, 1_003, 5, 6]);
    expect(follow(again, again.length).draft(4)).toEqual([1_002, 1_003, 5, 6]);
  });
});
