/** What is done to a chat reply while it is streamed equals what the authors' code does to the whole. */
import { describe, expect, it } from "vitest";
import type { Detokenizer } from "../../../coordinator/prompt/detokenizer.js";
import { replyDetokenizer, trimEnd } from "../../../coordinator/prompt/reply.js";
import { chatglm6bCard } from "./prefix-cards.js";
import { seededRandom } from "./sentencepiece-fixture.js";

/** Each part as if a token. */
function streamed(parts: string[]): string[] {
  const plain: Detokenizer = { push: (token) => parts[token] ?? "", flush: () => "" };
  const reply = replyDetokenizer(plain, chatglm6bCard);
  const first = [...parts.map((_, token) => reply.push(token)), reply.flush()];
  // It can then be used for another text.
  const again = [...parts.map((_, token) => reply.push(token)), reply.flush()];
  expect(again).toEqual(first);
  return first;
}

/** The authors' process_response. */
function whole(text: string): string {
  const space = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
  let reply = text.replace(new RegExp(`^${space}`), "").replace(new RegExp(`${space}$`), "");
  reply = reply.replaceAll("[[训练时间]]", "2023年");
  for (const [mark, chinese] of [
    [",", "，"],
    ["!", "！"],
    [":", "："],
    [";", "；"],
    ["\\?", "？"],
  ] as const) {
    reply = reply.replaceAll(new RegExp(`([\u4e00-\u9fff])${mark}`, "g"), `$1${chinese}`);
    reply = reply.replaceAll(new RegExp(`${mark}([\u4e00-\u9fff])`, "g"), `${chinese}$1`);
  }
  return reply;
}

describe("a reply of ChatGLM-6B", () => {
  it.each([
    [
      ["你好", ",", "世界", "!"],
      ["你好", "，", "世界", "！", ""],
    ],
    [
      ["a,", "b"],
      ["a", ",b", ""],
    ],
    [
      ["a", ",", "好"],
      ["a", "", "，好", ""],
    ],
    [
      ["a,,好", ",,"],
      ["a,，好", "，", ","],
    ],
    [
      [" \n", "a ", " b", " ", "\n"],
      ["", "a", "  b", "", "", ""],
    ],
    [
      ["我在[[训", "练时间]]", "?"],
      ["我在", "2023年", "？", ""],
    ],
    [
      ["a?", ""],
      ["a", "", "?"],
    ],
    [["3:5;x"], ["3:5;x", ""]],
    [
      ["  ", "\n"],
      ["", "", ""],
    ],
  ])("%j is given as %j", (parts, expected) => {
    expect(streamed(parts)).toEqual(expected);
  });

  it("is the authors' whatever the cuts, and nothing given is taken back", () => {
    const random = seededRandom(5);
    const pool = [
      ",",
      "!",
      ":",
      ";",
      "?",
      "你",
      "好",
      "a",
      " ",
      "\n",
      "[[训练时间]]",
      "[",
      "]",
      "训练",
      "，",
      "\u3000",
      "鿿",
      "ꀀ",
      "😀",
    ];
    for (let round = 0; round < 3000; round++) {
      const text = Array.from({ length: random(25) }, () => pool[random(pool.length)]).join("");
      const parts: string[] = [];
      for (let at = 0; at < text.length; at += parts.at(-1)!.length)
        parts.push(text.slice(at, at + 1 + random(4)));
      const expected = whole(text);
      let given = "";
      for (const part of streamed(parts)) {
        given += part;
        expect(expected.startsWith(given)).toBe(true);
      }
      expect(given).toBe(expected);
    }
  });

  it("of endless whitespace or marks costs no more than its length", () => {
    const spaces = Array.from({ length: 100_000 }, () => " ");
    expect(streamed(["a", ...spaces, "b"]).join("")).toBe(`a${" ".repeat(100_000)}b`);
    expect(streamed(["a", ...spaces.map(() => ",")]).join("")).toHaveLength(100_001);
  });
});

it("trimEnd takes Python's whitespace away", () => {
  expect(trimEnd("a \x1c\u0085\u3000\n")).toBe("a");
  expect(trimEnd("a\ufeff")).toBe("a\ufeff");
  expect(trimEnd("  ")).toBe("");
});
