/**
 * Reads GPT-2's tokenizer: vocab.json gives each token its id, merges.txt has a line for each merge, the
 * best one first. The tokens of single bytes come first, then those of the merges in their order, so that
 * an id is a rank; behind them stand the special tokens, if any, which the card names.
 */
import { RelayError } from "../common/errors.js";
import { bytesOfToken, orderedTokens } from "./byte-level.js";
import { parseJsonObject } from "./json.js";
import { type RanksFile, ranksFile } from "./ranks.js";

const byteCount = 256;

/**
 * @param specialTokens Those that may end the vocabulary, in their order; they are not among the ranks.
 * @throws RelayError invalid_model for files that do not fit each other, or would encode in another way.
 */
export function parseGpt2Files(
  vocab: { bytes: Uint8Array; path: string },
  merges: { bytes: Uint8Array; path: string },
  specialTokens: readonly string[],
): RanksFile {
  const refuse = (problem: string): never => {
    throw new RelayError("invalid_model", `${vocab.path}: ${problem}`);
  };
  const refuseMerges = (problem: string): never => {
    throw new RelayError("invalid_model", `${merges.path}: ${problem}`);
  };
  const all = orderedTokens(parseJsonObject(vocab.bytes, vocab.path), "it", refuse);
  const lines = mergeLines(merges.bytes);
  const tokens = all.slice(0, byteCount + lines.length);
  if (tokens.length < byteCount + lines.length) {
    refuse(
      `it has ${all.length} tokens, expected ${byteCount} bytes and one for each of ${lines.length} merges`,
    );
  }
  for (const [index, name] of all.slice(tokens.length).entries()) {
    if (name === specialTokens[index]) continue;
    const expected = specialTokens[index] === undefined ? "no token" : `"${specialTokens[index]}"`;
    refuse(`the id ${tokens.length + index} is "${name}", behind the merges, expected ${expected}`);
  }
  for (const [index, line] of lines.entries()) {
    const id = byteCount + index;
    if (line.split(" ").length === 2 && line.replace(" ", "") === tokens[id]) continue;
    refuseMerges(
      `merge ${index} is "${line}", expected two tokens that make "${tokens[id]}", which has the id ${id}`,
    );
  }
  return ranksFile(
    tokens.map((token) => bytesOfToken(token, "it", refuse)),
    vocab.path,
  );
}

/** The first line of the published file is "#version: 0.2". */
function mergeLines(bytes: Uint8Array): string[] {
  const lines = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString().split(/\r?\n/);
  if (lines[0]?.startsWith("#version")) lines.shift();
  while (lines.at(-1) === "") lines.pop();
  return lines;
}
