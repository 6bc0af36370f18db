/** Files of byte ranks for tests: OpenAI's cl100k_base as npm's tiktoken carries it, and a small one. */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

/** Lines "! FIRST_RANK TOKEN TOKEN ...", tokens in base64. */
const { bpe_ranks: packed } = JSON.parse(
  readFileSync(createRequire(import.meta.url).resolve("tiktoken/encoders/cl100k_base.json"), "utf8"),
) as { bpe_ranks: string };

export const cl100kPacked = packed;

/** The bytes of each token by rank. */
export function cl100kTokens(): Buffer[] {
  const tokens: Buffer[] = [];
  for (const line of packed.split("\n")) {
    const [, first, ...encoded] = line.split(" ");
    for (const [index, text] of encoded.entries())
      tokens[Number(first) + index] = Buffer.from(text, "base64");
  }
  return tokens;
}

/** All bytes, then a few merges. */
export function smallTokens(): Buffer[] {
  const merges = [
    "ll",
    "he",
    "hell",
    "hello",
    " w",
    "or",
    " wor",
    "ld",
    " world",
    "  ",
    "    ",
    "你",
    "好",
    "你好",
  ];
  // Half of "你", which must be there to build it.
  const halves = [Buffer.from([0xe4, 0xbd]), Buffer.from([0xe5, 0xa5])];
  return [
    ...Array.from({ length: 256 }, (_, byte) => Buffer.of(byte)),
    ...halves,
    ...merges.map((text) => Buffer.from(text)),
  ];
}

/** As GLM-4 publishes its tokenizer.model. */
export function rankLines(tokens: Buffer[]): string {
  return tokens.map((token, rank) => `${token.toString("base64")} ${rank}\n`).join("");
}

/** Each byte as byte-level BPE shows it: visible Latin-1 as itself, the rest from U+0100 on. */
const characters = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(visible ? byte : next++);
  });
})();
const shown = (token: Uint8Array) => Array.from(token, (byte) => characters[byte]!).join("");

/** The file that the transformers package makes of ranks: every way to make a token of two others is a merge. */
export function tokenizerJson(
  tokens: readonly Uint8Array[],
  facts: { pattern: string; specialTokens: readonly string[] },
  form: "pairs" | "strings" = "strings",
): any {
  const names = tokens.map(shown);
  const known = new Set(names);
  const merges = names.flatMap((name) => {
    const cuts = Array.from({ length: name.length - 1 }, (_, i) => [name.slice(0, i + 1), name.slice(i + 1)]);
    return cuts.filter(([left, right]) => known.has(left!) && known.has(right!));
  });
  return {
    version: "1.0",
    added_tokens: facts.specialTokens.map((content, i) => ({
      id: tokens.length + i,
      content,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: facts.pattern }, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      vocab: Object.fromEntries(names.map((name, id) => [name, id])),
      merges: form === "pairs" ? merges : merges.map((pair) => pair.join(" ")),
    },
  };
}
