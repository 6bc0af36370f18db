/**
 * Reads files of byte ranks, as tiktoken does: each line a token's bytes in base64, a space, and its
 * rank, which is its id. The lower the rank, the earlier two neighbours are merged into it.
 */
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";

/** The longest of cl100k_base has 128. The encoder looks at every way to cut a token in two. */
const maxTokenBytes = 1024;
/** What the merge queue can order. */
const maxTokens = 2 ** 21;

export interface RanksFile {
  kind: "tiktoken";
  path: string;
  /** Bytes of each token, one per character U+0000 to U+00FF. A token's index is its rank and its id. */
  tokens: string[];
  /** Special tokens that the file itself lists, numbered after the others; absent: the card's are. */
  added?: AddedToken[];
}

export interface AddedToken {
  name: string;
  /** Part of a text like any other token, though it is never split. */
  visible: boolean;
}

/** @throws RelayError invalid_model for a line of another form, a gap, a repetition or a byte that is missing. */
export function parseRanks(bytes: Uint8Array, path: string): RanksFile {
  const refuse = (problem: string): never => {
    throw new RelayError("invalid_model", `${path}: ${problem}`);
  };
  const lines = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1").split("\n");
  if (lines.at(-1) === "") lines.pop();
  if (lines.length > maxTokens) refuse(`it has ${lines.length} lines, expected at most ${maxTokens}`);
  const tokens = new Array<string | undefined>(lines.length).fill(undefined);
  const seen = new Set<string>();
  for (const [index, line] of lines.entries()) {
    const where = `line ${index + 1}`;
    const [, encoded = "", digits = ""] = /^([A-Za-z0-9+/]+={0,2}) (\d{1,7})\r?$/.exec(line) ?? [];
    const token = Buffer.from(encoded, "base64");
    if (token.length === 0 || token.toString("base64") !== encoded) {
      refuse(`${where} is ${printValue(line)}, expected a token in base64, a space and its rank`);
    }
    if (token.length > maxTokenBytes) {
      refuse(`${where} has a token of ${token.length} bytes, expected at most ${maxTokenBytes}`);
    }
    const rank = Number(digits);
    if (rank >= tokens.length) {
      refuse(`${where} has rank ${rank}, expected one below ${tokens.length}, the number of lines`);
    }
    if (tokens[rank] !== undefined) refuse(`${where} has rank ${rank} again, expected each rank once`);
    const text = token.toString("latin1");
    if (seen.has(text)) refuse(`${where} has the token ${printValue(encoded)} again, expected it once`);
    seen.add(text);
    tokens[rank] = text;
  }
  return ranksFile(tokens as string[], path);
}

/**
 * @param tokens Bytes of each token, one per character, in the order of their ranks; each once.
 * @throws RelayError invalid_model when a byte is no token: then some text could not be encoded.
 */
export function ranksFile(tokens: string[], path: string): RanksFile {
  const known = new Set(tokens);
  for (let byte = 0; byte < 256; byte++) {
    if (known.has(String.fromCharCode(byte))) continue;
    throw new RelayError(
      "invalid_model",
      `${path}: no token is the byte ${hexByte(byte)}, expected all 256 of them`,
    );
  }
  return { kind: "tiktoken", path, tokens };
}

function hexByte(byte: number): string {
  return `0x${byte.toString(16).toUpperCase().padStart(2, "0")}`;
}
