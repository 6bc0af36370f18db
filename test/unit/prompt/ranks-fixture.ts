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
