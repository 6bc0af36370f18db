/**
 * The tokenizer's file of a model directory, of whichever kind the card says, and the ids of its
 * special tokens. Lives here and not beside the tokenizer because workers need the number of tokens.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ModelCard } from "../models/card.js";
import { printValue } from "../models/print.js";
import { readModelFile } from "./json.js";
import { type AddedToken, parseRanks, type RanksFile } from "./ranks.js";
import { parseSentencePiece, type SentencePieceFile } from "./sentencepiece.js";
import { parseTokenizerJson } from "./tokenizer-json.js";

export type TokenizerFile = SentencePieceFile | RanksFile;

/** The largest ranks of a GLM have 3 MB, the same as JSON 20 MB. */
const maxFileBytes = 64 * 1024 * 1024;

/** null when the directory has no such file. @throws RelayError invalid_model */
export async function readTokenizerFile(directory: string, card: ModelCard): Promise<TokenizerFile | null> {
  const { tokenizer } = card;
  const read = async <T>(name: string, parse: (bytes: Uint8Array, path: string) => T): Promise<T | null> => {
    const path = join(directory, name);
    return existsSync(path) ? parse(await readModelFile(path, maxFileBytes), path) : null;
  };
  if (tokenizer.kind === "sentencepiece") return read(tokenizer.file, parseSentencePiece);
  return (
    (await read(tokenizer.file, parseRanks)) ??
    (await read(tokenizer.jsonFile, (bytes, path) => parseTokenizerJson(bytes, path, tokenizer)))
  );
}

/** Tokens of the file itself; the special ones that the card adds are numbered from here on. */
function fileTokenCount(file: TokenizerFile): number {
  return file.kind === "tiktoken" ? file.tokens.length : file.pieces.length;
}

/** Special tokens in the order of their ids, which follow those of the file's other tokens. */
export function addedTokensOf(file: TokenizerFile, card: ModelCard): AddedToken[] {
  const { specialTokens, visibleTokens = [] } = card.tokenizer;
  const listed = file.kind === "tiktoken" ? file.added : undefined;
  const added = listed ?? specialTokens.map((name): AddedToken => ({ name, visible: false }));
  return added.map(({ name, visible }) => ({ name, visible: visible || visibleTokens.includes(name) }));
}

/** Ids that exist. */
export function tokenCountOf(file: TokenizerFile, card: ModelCard): number {
  return fileTokenCount(file) + addedTokensOf(file, card).length;
}

/** @returns -1 for an unknown name. */
export function specialTokenId(file: TokenizerFile, card: ModelCard, name: string): number {
  const special = addedTokensOf(file, card).findIndex((token) => token.name === name);
  if (special >= 0) return fileTokenCount(file) + special;
  if (file.kind === "tiktoken") return -1;
  return file.pieces.findIndex(({ text, type }) => type === "control" && text === name);
}

/** @throws RelayError invalid_model when the file lacks a token that the card names. */
export function stopTokenIds(file: TokenizerFile, card: ModelCard): number[] {
  return card.tokenizer.stopTokens.map((name) => {
    const id = specialTokenId(file, card, name);
    if (id >= 0) return id;
    throw new RelayError("invalid_model", `${file.path}: no control piece "${name}", expected one`);
  });
}

/**
 * A file that lost tokens shifts the ids of all special ones, and nothing in itself tells: config.json's
 * end tokens do.
 * @throws RelayError invalid_model
 */
export function checkStopTokens(file: TokenizerFile, card: ModelCard, configStopTokens: number[]): void {
  const ids = stopTokenIds(file, card);
  const wrong = configStopTokens.find((id) => !ids.includes(id));
  if (wrong === undefined) return;
  const named = card.tokenizer.stopTokens.map((name, index) => `${printValue(name)} is ${ids[index]}`);
  throw new RelayError(
    "invalid_model",
    `${file.path}: with its ${fileTokenCount(file)} tokens ${named.join(", ")}, expected one to be ${wrong}, ` +
      `which is in "eos_token_id" of config.json`,
  );
}
