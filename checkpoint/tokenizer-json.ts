/**
 * Reads a tokenizer.json of byte-level BPE whose ids are the ranks of its merges, as the transformers
 * package writes it for tokenizers of byte ranks: then the ranks alone say how text becomes tokens. A file
 * that would encode in another way is refused, with what makes the difference.
 */
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { bytesOfToken, orderedTokens, type Refuse } from "./byte-level.js";
import { isObject, parseJsonObject } from "./json.js";
import { type RanksFile, ranksFile } from "./ranks.js";

/** What the card says of the tokenizer. */
export interface TokenizerJsonFacts {
  /** The regex that splits a text. */
  pattern: string;
  /** Numbered in this order after the vocabulary. */
  specialTokens: readonly string[];
}

/** @throws RelayError invalid_model */
export function parseTokenizerJson(bytes: Uint8Array, path: string, facts: TokenizerJsonFacts): RanksFile {
  const refuse = (problem: string): never => {
    throw new RelayError("invalid_model", `${path}: ${problem}`);
  };
  const file = parseJsonObject(bytes, path);
  const model = isObject(file.model) ? file.model : refuse('"model" is missing, expected one of type BPE');
  if (model.type !== "BPE") refuse(`"model.type" is ${printValue(model.type)}, expected "BPE"`);
  for (const field of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model[field]) refuse(`"model.${field}" is ${printValue(model[field])}, expected none`);
  }
  if (file.normalizer !== null && file.normalizer !== undefined) {
    refuse(`"normalizer" is ${printValue(file.normalizer)}, expected none`);
  }
  const pattern = splitPattern(file.pre_tokenizer);
  if (pattern !== facts.pattern) {
    refuse(
      `"pre_tokenizer" splits by ${printValue(pattern)}, expected ${printValue(facts.pattern)} and then bytes`,
    );
  }
  const tokens = orderedTokens(model.vocab, '"model.vocab"', refuse);
  checkMerges(listIn(model, "merges", refuse), new Map(tokens.map((token, id) => [token, id])), refuse);
  checkAddedTokens(listIn(file, "added_tokens", refuse), tokens.length, facts.specialTokens, refuse);
  return ranksFile(
    tokens.map((token) => bytesOfToken(token, '"model.vocab"', refuse)),
    path,
  );
}

function listIn(object: Record<string, unknown>, field: string, refuse: Refuse): unknown[] {
  const value = object[field];
  return Array.isArray(value)
    ? (value as unknown[])
    : refuse(`"${field}" is ${printValue(value)}, expected a list`);
}

/** The regex of a split into pieces that are then taken as bytes; null for anything else. */
function splitPattern(preTokenizer: unknown): string | null {
  const steps =
    isObject(preTokenizer) && preTokenizer.type === "Sequence" ? preTokenizer.pretokenizers : null;
  if (!Array.isArray(steps) || steps.length !== 2) return null;
  const [split, byteLevel] = steps as [unknown, unknown];
  if (!isObject(split) || split.type !== "Split" || split.behavior !== "Isolated" || split.invert === true)
    return null;
  if (!isObject(byteLevel) || byteLevel.type !== "ByteLevel") return null;
  if (byteLevel.add_prefix_space !== false || byteLevel.use_regex !== false) return null;
  const { pattern } = split;
  return isObject(pattern) && typeof pattern.Regex === "string" ? pattern.Regex : null;
}

/** Merges in the order of the tokens they make: only then is the token's id its rank. */
function checkMerges(merges: unknown[], ids: ReadonlyMap<string, number>, refuse: Refuse): void {
  let last = -1;
  for (const [index, merge] of merges.entries()) {
    const pair: unknown = typeof merge === "string" ? merge.split(" ") : merge;
    const parts = Array.isArray(pair) && pair.length === 2 ? (pair as unknown[]) : [];
    const id = ids.get(parts.join(""));
    if (parts.length === 0 || id === undefined) {
      refuse(`"model.merges" has ${printValue(merge)} at ${index}, expected two tokens that make a third`);
    }
    if (id! < last) {
      refuse(
        `"model.merges" makes token ${id} at ${index} after token ${last}, expected the order of the ids`,
      );
    }
    last = id!;
  }
}

function checkAddedTokens(
  added: unknown[],
  vocabularySize: number,
  specialTokens: readonly string[],
  refuse: Refuse,
): void {
  const idOf = new Map(added.map((token) => (isObject(token) ? [token.content, token.id] : [null, null])));
  for (const [index, name] of specialTokens.entries()) {
    const id = idOf.get(name);
    if (id === vocabularySize + index) continue;
    const found = id === undefined ? "lacks" : `gives the id ${printValue(id)} to`;
    refuse(`"added_tokens" ${found} ${printValue(name)}, expected it with the id ${vocabularySize + index}`);
  }
}
