/**
 * Reads SentencePiece model files: a protobuf (ModelProto of sentencepiece_model.proto), of which few
 * fields matter.
 */
import { RelayError } from "../common/errors.js";
import type { AddedPiece } from "../models/card.js";
import { type CharacterMap, parseCharsmap } from "./charsmap.js";
import { readFields } from "./protobuf.js";

/** Trainers stop at 16 characters; the encoder's tables grow with the square of the longest piece. */
const maxPieceBytes = 1024;

const pieceTypes = ["normal", "unknown", "control", "userDefined", "unused", "byte"] as const;
export type PieceType = (typeof pieceTypes)[number];

export interface Piece {
  /** U+2581 stands for a space. A byte piece is written <0xE4>. */
  text: string;
  /** BPE: of two merges the higher one comes first. Unigram: the logarithm of the probability. */
  score: number;
  type: PieceType;
}

export interface SentencePieceFile {
  kind: "sentencepiece";
  path: string;
  /** How a text is cut into pieces. */
  modelType: "unigram" | "bpe";
  /** A piece's index is its token id. */
  pieces: Piece[];
  unknownId: number;
  /** Unknown characters become their UTF-8 bytes; else the unknown token. */
  byteFallback: boolean;
  /** Every text is encoded as if a space stood before it. */
  addDummyPrefix: boolean;
  /** Spaces at both ends are dropped, and of several in a row all but one. */
  removeExtraWhitespaces: boolean;
  /** What is replaced before encoding; null: nothing. */
  characterMap: CharacterMap | null;
  /** What the unknown token decodes to. */
  unknownSurface: string;
}

const modelTypes = [undefined, "unigram", "bpe", "word", "char"] as const;

interface Trainer {
  modelType: number;
  byteFallback: boolean;
  suffix: boolean;
  unknownSurface: string;
}

interface Normalizer {
  name: string;
  charsmap: Uint8Array | null;
  addDummyPrefix: boolean;
  removeExtraWhitespaces: boolean;
  escapeWhitespaces: boolean;
}

/** @throws RelayError invalid_model for damage, and for every feature that would encode differently. */
export function parseSentencePiece(
  bytes: Uint8Array,
  path: string,
  addedPieces: readonly AddedPiece[] = [],
): SentencePieceFile {
  const refuse = (what: string, expected: string): never => {
    throw new RelayError("invalid_model", `${path}: ${what}, expected ${expected}`);
  };
  const pieces: Piece[] = [];
  let trainer: Trainer | null = null;
  let normalizer: Normalizer | null = null;
  for (const { field, bytes: value } of readFields(bytes, path)) {
    if (value === null) continue;
    if (field === 1) pieces.push(parsePiece(value, path, pieces.length));
    else if (field === 2) trainer = readTrainer(value, path);
    else if (field === 3) normalizer = readNormalizer(value, path);
    else if (field === 5 && hasCharsmap(value, path)) {
      refuse("it has a denormalizer with a character map", "none");
    }
  }
  if (pieces.length === 0) refuse("it has no pieces", "a SentencePiece model");
  // They stand behind the pieces: a cut file would be taken for one with the defaults.
  if (!trainer || !normalizer) {
    return refuse("it has no trainer_spec or no normalizer_spec", "both: the file may be cut");
  }
  const modelType = modelTypes[trainer.modelType];
  if (modelType !== "unigram" && modelType !== "bpe") {
    return refuse(`model type is ${modelType?.toUpperCase() ?? trainer.modelType}`, "UNIGRAM or BPE");
  }
  const { name, charsmap } = normalizer;
  if (!charsmap && !["", "identity"].includes(name)) {
    refuse(`normalizer is "${name}" without a character map`, 'one, or the normalizer "identity"');
  }
  if (!normalizer.escapeWhitespaces) refuse("escape_whitespaces is false", "true");
  if (trainer.suffix) refuse("treat_whitespace_as_suffix is true", "false");
  const byteFallback = trainer.byteFallback || addedPieces.some(({ type }) => type === "byte");
  pieces.push(...addedPieces.map(({ text, type }): Piece => ({ text, type, score: 0 })));
  return {
    kind: "sentencepiece",
    path,
    modelType,
    pieces,
    unknownId: checkPieces(pieces, byteFallback, path),
    byteFallback,
    addDummyPrefix: normalizer.addDummyPrefix,
    removeExtraWhitespaces: normalizer.removeExtraWhitespaces,
    characterMap: charsmap && parseCharsmap(charsmap, path),
    unknownSurface: trainer.unknownSurface,
  };
}

// The defaults are those of sentencepiece_model.proto: trainers leave out what equals them.

function readTrainer(bytes: Uint8Array, path: string): Trainer {
  const trainer: Trainer = { modelType: 1, byteFallback: false, suffix: false, unknownSurface: " \u2047 " };
  for (const item of readFields(bytes, `${path} (trainer_spec)`)) {
    if (item.field === 3) trainer.modelType = item.number;
    else if (item.field === 24) trainer.suffix = item.number !== 0;
    else if (item.field === 35) trainer.byteFallback = item.number !== 0;
    else if (item.field === 44 && item.bytes) trainer.unknownSurface = decodeText(item.bytes, path);
  }
  return trainer;
}

function readNormalizer(bytes: Uint8Array, path: string): Normalizer {
  const normalizer: Normalizer = {
    name: "",
    charsmap: null,
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
    escapeWhitespaces: true,
  };
  for (const item of readFields(bytes, `${path} (normalizer_spec)`)) {
    if (item.field === 1 && item.bytes) normalizer.name = decodeText(item.bytes, path);
    else if (item.field === 2 && item.bytes) normalizer.charsmap = item.bytes.length > 0 ? item.bytes : null;
    else if (item.field === 3) normalizer.addDummyPrefix = item.number !== 0;
    else if (item.field === 4) normalizer.removeExtraWhitespaces = item.number !== 0;
    else if (item.field === 5) normalizer.escapeWhitespaces = item.number !== 0;
  }
  return normalizer;
}

function hasCharsmap(bytes: Uint8Array, path: string): boolean {
  return [...readFields(bytes, `${path} (denormalizer_spec)`)].some(
    (item) => item.field === 2 && item.bytes !== null && item.bytes.length > 0,
  );
}

function parsePiece(bytes: Uint8Array, path: string, id: number): Piece {
  let text = "";
  let score = 0;
  let type = 1;
  for (const { field, number, bytes: value } of readFields(bytes, `${path} (piece ${id})`)) {
    if (field === 1 && value) {
      if (value.length > maxPieceBytes) {
        throw new RelayError(
          "invalid_model",
          `${path}: piece ${id} has ${value.length} bytes, expected at most ${maxPieceBytes}`,
        );
      }
      text = decodeText(value, `${path}: piece ${id}`);
    } else if (field === 2 && value?.length === 4) {
      score = new DataView(value.buffer, value.byteOffset).getFloat32(0, true);
    } else if (field === 3) {
      type = number;
    }
  }
  const name = pieceTypes[type - 1];
  if (text === "" || name === undefined || !Number.isFinite(score)) {
    throw new RelayError(
      "invalid_model",
      `${path}: piece ${id} is "${text}" of type ${type} with score ${score}, expected a text, type 1 to 6, a number`,
    );
  }
  return { text, score, type: name };
}

/**
 * What SentencePiece itself demands of the set of pieces.
 * @returns The id of the unknown token.
 */
function checkPieces(pieces: Piece[], byteFallback: boolean, path: string): number {
  const refuse = (problem: string): never => {
    throw new RelayError("invalid_model", `${path}: ${problem}`);
  };
  const ids = new Map<string, number>();
  const bytesFound = new Set<number>();
  let unknownId = -1;
  for (const [id, { text, type }] of pieces.entries()) {
    const other = ids.get(text);
    if (other !== undefined) refuse(`pieces ${other} and ${id} are both "${text}", expected different ones`);
    ids.set(text, id);
    if (type === "unknown") {
      if (unknownId >= 0) refuse(`pieces ${unknownId} and ${id} are both of type UNKNOWN, expected one`);
      unknownId = id;
    } else if (type === "byte") {
      if (!byteFallback) refuse(`piece ${id} is the byte "${text}", but byte_fallback is false`);
      const value = pieceByte(text);
      if (value === null) refuse(`byte piece ${id} is "${text}", expected <0x00> to <0xFF>`);
      else bytesFound.add(value);
    }
  }
  if (unknownId < 0) refuse("no piece is of type UNKNOWN, expected one");
  if (byteFallback && bytesFound.size !== 256) {
    refuse(`byte_fallback is true, but only ${bytesFound.size} of 256 byte pieces are there`);
  }
  return unknownId;
}

/** The value of a byte piece's text, null when it is none. */
export function pieceByte(text: string): number | null {
  return /^<0x[0-9A-F]{2}>$/.test(text) ? Number.parseInt(text.slice(3, 5), 16) : null;
}

/** Buffer decodes short texts several times faster than TextDecoder, and a file has 65,000 of them. */
function decodeText(bytes: Uint8Array, where: string): string {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const text = buffer.toString("utf8");
  if (text.includes("\ufffd") && !Buffer.from(text).equals(buffer)) {
    throw new RelayError("invalid_model", `${where} is not UTF-8`);
  }
  return text;
}
