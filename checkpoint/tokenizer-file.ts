/**
 * The tokenizer's file of a model directory, of whichever kind the card says, and the ids of its
 * special tokens. Lives here and not beside the tokenizer because workers need the number of tokens.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ModelCard } from "../models/card.js";
import { printValue } from "../models/print.js";
import { parseGpt2Files } from "./gpt2-files.js";
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
  const read = async (name: string): Promise<{ bytes: Uint8Array; path: string } | null> => {
    const path = join(directory, name);
    return existsSync(path) ? { bytes: await readModelFile(path, maxFileBytes), path } : null;
  };
  const file = await read(tokenizer.file);
  switch (tokenizer.kind) {
    case "sentencepiece":
      return file && parseSentencePiece(file.bytes, file.path, tokenizer.addedPieces);
    case "tiktoken": {
      if (file) return parseRanks(file.bytes, file.path);
      const json = await read(tokenizer.jsonFile);
      return json && parseTokenizerJson(json.bytes, json.path, tokenizer);
    }
    case "byteLevel": {
      if (!file) return null;
      const merges = await read(tokenizer.mergesFile);
      if (merges) return parseGpt2Files(file, merges, tokenizer.specialTokens);
      const missing = join(directory, tokenizer.mergesFile);
      throw new RelayError("invalid_model", `${missing}: not found, expected it beside ${tokenizer.file}`);
    }
  }
}

/** The id of the file's first token: what lies below stands for no text. */
function firstTokenId({ tokenizer }: ModelCard): number {
  return tokenizer.kind === "sentencepiece" ? (tokenizer.firstPieceId ?? 0) : 0;
}

/** The special tokens that the card adds are numbered from here on. */
function fileTokenEnd(file: TokenizerFile, card: ModelCard): number {
  return firstTokenId(card) + (file.kind === "tiktoken" ? file.tokens.length : file.pieces.length);
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
  return fileTokenEnd(file, card) + addedTokensOf(file, card).length;
}

/** @returns -1 for an unknown name. */
export function specialTokenId(file: TokenizerFile, card: ModelCard, name: string): number {
  const { aliases } = card.tokenizer;
  const wanted = aliases?.[name] ?? name;
  const special = addedTokensOf(file, card).findIndex((token) => token.name === wanted);
  if (special >= 0) return fileTokenEnd(file, card) + special;
  if (file.kind === "tiktoken") return -1;
  const piece = file.pieces.findIndex(({ text, type }) => type === "control" && text === name);
  return piece < 0 ? -1 : firstTokenId(card) + piece;
}

/** @throws RelayError invalid_model when the file lacks a token that the card names. */
export function requiredTokenId(file: TokenizerFile, card: ModelCard, name: string): number {
  const id = specialTokenId(file, card, name);
  if (id >= 0) return id;
  throw new RelayError("invalid_model", `${file.path}: no control piece "${name}", expected one`);
}

/** What a prompt of a model that fills blanks is divided by. */
export interface FillIds {
  /** In the card's order of preference. */
  masks: readonly number[];
  order: "kind" | "place";
  start: number;
}

/**
 * @param file null for a directory without one: the ids of the published vocabulary then hold.
 * @returns null for a model that fills no blanks.
 * @throws RelayError invalid_model when the file lacks one of the tokens.
 */
export function fillIdsOf(file: TokenizerFile | null, card: ModelCard): FillIds | null {
  const { fill } = card.tokenizer;
  if (!fill) return null;
  if (file === null) return { order: fill.order, ...fill.publishedIds };
  return {
    order: fill.order,
    masks: fill.masks.map((name) => requiredTokenId(file, card, name)),
    start: requiredTokenId(file, card, fill.start),
  };
}

/** @throws RelayError invalid_model when the file lacks a token that the card names. */
export function stopTokenIds(file: TokenizerFile, card: ModelCard): number[] {
  return card.tokenizer.stopTokens.map((name) => requiredTokenId(file, card, name));
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
    `${file.path}: with its ${fileTokenEnd(file, card)} tokens ${named.join(", ")}, expected one to be ${wrong}, ` +
      `which is in "eos_token_id" of config.json`,
  );
}
