/**
 * Reads SentencePiece model files: a protobuf (ModelProto of sentencepiece_model.proto), of which few
 * fields matter.
 */
import { RelayError } from "../common/errors.js";
import { readFields } from "./protobuf.js";

/** Trainers stop at 16 characters; the encoder's tables grow with the square of the longest piece. */
const maxPieceBytes = 1024;

const pieceTypes = ["normal", "unknown", "control", "userDefined", "unused", "byte"] as const;
export type PieceType = (typeof pieceTypes)[number];

export interface Piece {
  /** U+2581 stands for a space. A byte piece is written <0xE4>. */
  text: string;
  /** Of a merge: the higher, the earlier. */
  score: number;
  type: PieceType;
}

export interface SentencePieceFile {
  kind: "sentencepiece";
  path: string;
  /** A piece's index is its token id. */
  pieces: Piece[];
  unknownId: number;
  /** Unknown characters become their UTF-8 bytes; else the unknown token. */
  byteFallback: boolean;
  /** Every text is encoded as if a space stood before it. */
  addDummyPrefix: boolean;
  /** What the unknown token decodes to. */
  unknownSurface: string;
}

/** @throws RelayError invalid_model for damage, and for every feature that would encode differently. */
export function parseSentencePiece(bytes: Uint8Array, path: string): SentencePieceFile {
  const pieces: Piece[] = [];
  const trainer = { modelType: 1, byteFallback: false, suffix: false, unknownSurface: " \u2047 " };
  const normalizer = {
    name: "",
    charsmapBytes: 0,
    addDummyPrefix: true,
    removeExtraWhitespaces: true,
    escapeWhitespaces: true,
  };
  let denormalizes = false;
  for (const { field, bytes: value } of readFields(bytes, path)) {
    if (value === null) continue;
    if (field === 1) {
      pieces.push(parsePiece(value, path, pieces.length));
    } else if (field === 2) {
      for (const item of readFields(value, `${path} (trainer_spec)`)) {
        if (item.field === 3) trainer.modelType = item.number;
        else if (item.field === 24) trainer.suffix = item.number !== 0;
        else if (item.field === 35) trainer.byteFallback = item.number !== 0;
        else if (item.field === 44 && item.bytes) trainer.unknownSurface = decodeText(item.bytes, path);
      }
    } else if (field === 3) {
      for (const item of readFields(value, `${path} (normalizer_spec)`)) {
        if (item.field === 1 && item.bytes) normalizer.name = decodeText(item.bytes, path);
        else if (item.field === 2 && item.bytes) normalizer.charsmapBytes = item.bytes.length;
        else if (item.field === 3) normalizer.addDummyPrefix = item.number !== 0;
        else if (item.field === 4) normalizer.removeExtraWhitespaces = item.number !== 0;
        else if (item.field === 5) normalizer.escapeWhitespaces = item.number !== 0;
      }
    } else if (field === 5) {
      denormalizes = [...readFields(value, `${path} (denormalizer_spec)`)].some(
        (item) => item.field === 2 && item.bytes !== null && item.bytes.length > 0,
      );
    }
  }
  const refuse = (what: string, expected: string): never => {
    throw new RelayError("invalid_model", `${path}: ${what}, expected ${expected}`);
  };
  if (pieces.length === 0) refuse("it has no pieces", "a SentencePiece model");
  if (trainer.modelType !== 2) {
    const name = [undefined, "UNIGRAM", "BPE", "WORD", "CHAR"][trainer.modelType] ?? trainer.modelType;
    refuse(`model type is ${name}`, "BPE");
  }
  if (normalizer.charsmapBytes > 0 || !["", "identity"].includes(normalizer.name)) {
    refuse(`normalizer is "${normalizer.name}"`, '"identity" without character map');
  }
  if (denormalizes) refuse("it has a denormalizer with a character map", "none");
  if (normalizer.removeExtraWhitespaces) refuse("remove_extra_whitespaces is true", "false");
  if (!normalizer.escapeWhitespaces) refuse("escape_whitespaces is false", "true");
  if (trainer.suffix) refuse("treat_whitespace_as_suffix is true", "false");
  return {
    kind: "sentencepiece",
    path,
    pieces,
    unknownId: checkPieces(pieces, trainer.byteFallback, path),
    byteFallback: trainer.byteFallback,
    addDummyPrefix: normalizer.addDummyPrefix,
    unknownSurface: trainer.unknownSurface,
  };
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

/** What SentencePiece itself demands of the set of pieces. @returns The id of the unknown token. */
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
