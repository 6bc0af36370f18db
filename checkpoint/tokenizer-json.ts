/**
 * Reads a tokenizer.json of byte-level BPE whose ids are the ranks of its merges, as the transformers
 * package writes it for tokenizers of byte ranks: then the ranks alone say how text becomes tokens. A file
 * that would encode in another way is refused, with what makes the difference.
 */
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { bytesOfToken, orderedTokens, type Refuse } from "./byte-level.js";
import { isObject, parseJsonObject } from "./json.js";
import { type AddedToken, type RanksFile, ranksFile } from "./ranks.js";

/** What the card says of the tokenizer. */
export interface TokenizerJsonFacts {
  /** The regex that splits a text. */
  pattern: string;
  /** Must be among the file's added tokens. */
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
  const added = addedTokens(listIn(file, "added_tokens", refuse), tokens.length, refuse);
  const missing = facts.specialTokens.find((special) => !added.some(({ name }) => name === special));
  if (missing !== undefined) refuse(`"added_tokens" lacks ${printValue(missing)}, expected it`);
  const ranks = tokens.map((token) => bytesOfToken(token, '"model.vocab"', refuse));
  return { ...ranksFile(ranks, path), added };
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

/** In the order of their ids, which follow the vocabulary's without a gap. */
function addedTokens(list: unknown[], vocabularySize: number, refuse: Refuse): AddedToken[] {
  const added = new Array<AddedToken | undefined>(list.length).fill(undefined);
  for (const [index, token] of list.entries()) {
    const { content: name, id, special } = isObject(token) ? token : {};
    if (typeof name !== "string" || name === "") {
      return refuse(`"added_tokens" has ${printValue(token)} at ${index}, expected {"content", "id", ...}`);
    }
    const place = (typeof id === "number" ? id : Number.NaN) - vocabularySize;
    if (!Number.isSafeInteger(place) || place < 0 || place >= list.length || added[place] !== undefined) {
      refuse(
        `"added_tokens" gives the id ${printValue(id)} to ${printValue(name)}, expected ` +
          `${vocabularySize} to ${vocabularySize + list.length - 1}, each once`,
      );
    }
    for (const flag of ["lstrip", "rstrip", "single_word"]) {
      const value = (token as Record<string, unknown>)[flag];
      if (value === true) refuse(`"added_tokens": "${flag}" of ${printValue(name)} is true, expected false`);
    }
    added[place] = { name, visible: special === false };
  }
  const names = new Set(added.map((token) => token?.name));
  if (names.size < list.length) refuse('"added_tokens" has a name twice, expected each once');
  return added as AddedToken[];
}
