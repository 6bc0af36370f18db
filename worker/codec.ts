/**
 * A step as it travels and as the engine takes it: header and activations in, activations or drawn
 * tokens out. Everything that a peer wrote is checked here; the engine then trusts it. Pure but for
 * the block tables, which it moves on.
 */
import { bytesFromFloat32, bytesFromInt32, checksum, int32FromBytes } from "../common/bytes.js";
import { RelayError } from "../common/errors.js";
import { maxDraftRows, maxLoggedIdLength } from "../common/limits.js";
import type { SampleRequest, ScoreRequest, StepInput, StepOutput, TokenResult } from "../native/index.js";
import type { LinkFrame } from "../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { SequenceResult } from "../proto/generated/glm/relay/internal/v1/SequenceResult.js";
import type { SequenceRows__Output } from "../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { StepHeader__Output } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import type { TokenResult as TokenResultMessage } from "../proto/generated/glm/relay/internal/v1/TokenResult.js";
import type { BlockTables, TableChange } from "./kv-cache/block-tables.js";
import type { ReadSlice } from "./slices.js";

/** The field is a uint32. */
const maxStageUs = 2 ** 32 - 1;

/** What the decoder must know of the stage that it decodes for. */
export interface StepFormat {
  /** First stage: token ids come in. Otherwise activations do. */
  first: boolean;
  /** Last stage: tokens are drawn and scored here. */
  last: boolean;
  /** Its number: as many stages before it have written how long the step took them. */
  stage: number;
  /** Bytes of one row of activations. */
  rowBytes: number;
  /** Ids of tokens are below it. */
  tokenCount: number;
  maxRows: number;
}

/**
 * Turns a step into the engine's input and moves the block tables on.
 * @param slice What the header says of a slice (slices.ts).
 * @throws RelayError corrupt_message when header, activations and tables contradict each other; the
 *   tables have not changed then.
 */
export function decodeStep(
  header: StepHeader__Output,
  activations: Uint8Array,
  tables: BlockTables,
  format: StepFormat,
  slice: ReadSlice | null = null,
): StepInput {
  const rows = header.sequences.reduce((sum, sequence) => sum + sequence.rowCount, 0);
  if (rows === 0 && slice === null) throw corrupt("step has no rows: expected at least one, or a slice");
  if (rows > format.maxRows) throw corrupt(`step has ${rows} rows: expected at most ${format.maxRows}`);
  const activationBytes = format.first ? 0 : rows * format.rowBytes;
  if (activations.byteLength !== activationBytes) {
    throw corrupt(
      `${activations.byteLength} bytes of activations for ${rows} rows: expected ${activationBytes}`,
    );
  }
  if (header.stageUs.length !== format.stage) {
    const got = `${header.stageUs.length} compute times`;
    throw corrupt(`step has the ${got} of stages before stage ${format.stage}: expected ${format.stage}`);
  }
  const tokenIds = format.first && rows > 0 ? decodeTokens(header, rows, format.tokenCount) : null;
  for (const sequence of header.sequences) checkDraft(sequence);
  const { copies, sequences } = header;
  if (copies.length > sequences.length) {
    throw corrupt(`step copies ${copies.length} blocks for ${sequences.length} sequences: expected one each`);
  }
  tables.checkCopies(copies);
  const requests = format.last ? decodeRequests(header, format.tokenCount) : { samples: [], scores: [] };
  const changes = header.sequences.map(tableChange);
  const contexts = header.sequences.map(contextOf);
  const blockTables = tables.apply(header.ended, changes, slice?.change);
  const sliceTable = slice === null ? null : blockTables.shift()!;
  return {
    ...(copies.length > 0 && { copies }),
    ...(slice !== null && slice.input !== null && { slice: slice.input(sliceTable!) }),
    sequences: changes.map((change, index) => ({
      rowCount: change.rowCount,
      startPosition: change.validLength,
      ...contexts[index]!,
      blockTable: blockTables[index]!,
    })),
    tokenIds,
    activations: format.first || rows === 0 ? null : activations,
    ...requests,
  };
}

/** What rows say about their sequence's table. @throws RelayError corrupt_message. */
export function tableChange(rows: SequenceRows__Output): TableChange {
  const { sequence, requestId, validLength, rowCount, newBlocks } = rows;
  if (requestId.length > maxLoggedIdLength) {
    throw corrupt(
      `sequence ${sequence} has a request id of ${requestId.length} characters: expected at most ${maxLoggedIdLength}`,
    );
  }
  return {
    sequence,
    requestId,
    validLength,
    rowCount,
    newBlocks: int32s(newBlocks, "new blocks", sequence),
  };
}

/** A context comes with its first row, or has come before. @throws RelayError corrupt_message. */
export function contextOf(rows: SequenceRows__Output): { contextLength: number; maskPosition: number } {
  const { sequence, context, validLength, rowCount } = rows;
  if (context === null) return { contextLength: 0, maskPosition: -1 };
  const { length, maskPosition } = context;
  const end = validLength + rowCount;
  if (validLength < length && (validLength > 0 || end < length)) {
    throw corrupt(
      `sequence ${sequence} has the rows [${validLength}, ${end}) of a context of ${length}: expected all of them`,
    );
  }
  if (maskPosition < -1 || maskPosition >= length) {
    throw corrupt(`sequence ${sequence} has its mask at ${maskPosition}: expected -1 to ${length - 1}`);
  }
  return { contextLength: length, maskPosition };
}

/** Guesses stand behind a decided row, outside a context, and there is something to draw that they guess at. */
function checkDraft(rows: SequenceRows__Output): void {
  const { sequence, draftRows, rowCount, validLength, sampling, context } = rows;
  if (draftRows === 0) return;
  const draft = `sequence ${sequence} has ${draftRows} draft rows`;
  if (sampling === null) throw corrupt(`${draft} and no sampling: expected 0`);
  const most = Math.min(maxDraftRows, rowCount - 1);
  if (draftRows > most) throw corrupt(`${draft} among ${rowCount} rows: expected at most ${most}`);
  const begin = validLength + rowCount - draftRows;
  if (context !== null && begin < context.length) {
    throw corrupt(`${draft} from ${begin} on, in a context of ${context.length}: expected them behind it`);
  }
}

function decodeTokens(header: StepHeader__Output, rows: number, tokenCount: number): Int32Array {
  const tokens = new Int32Array(rows);
  let row = 0;
  for (const sequence of header.sequences) {
    const ids = tokenIdsOf(sequence, tokenCount);
    tokens.set(ids, row);
    row += ids.length;
  }
  return tokens;
}

/** One per row. @throws RelayError corrupt_message. */
export function tokenIdsOf(sequence: SequenceRows__Output, tokenCount: number): Int32Array {
  const ids = rowValues(sequence, sequence.tokenIds, "token ids");
  for (const id of ids) requireToken(sequence, id, tokenCount);
  return ids;
}

function decodeRequests(
  header: StepHeader__Output,
  tokenCount: number,
): { samples: SampleRequest[]; scores: ScoreRequest[] } {
  const samples: SampleRequest[] = [];
  const scores: ScoreRequest[] = [];
  let row = 0;
  for (const sequence of header.sequences) {
    if (sequence.sampling !== null) samples.push(sampleRequest(sequence, row, tokenCount));
    if (sequence.scoreTargets.length > 0) {
      const targets = rowValues(sequence, sequence.scoreTargets, "score targets");
      for (const [index, token] of targets.entries()) {
        if (token < 0) continue;
        requireToken(sequence, token, tokenCount);
        scores.push({ row: row + index, token, topLogprobs: sequence.scoreTopLogprobs });
      }
    }
    row += sequence.rowCount;
  }
  return { samples, scores };
}

/**
 * Draws the token after the sequence's last decided row, and those after its draft.
 * @param row The sequence's first one in the step.
 */
function sampleRequest(sequence: SequenceRows__Output, row: number, tokenCount: number): SampleRequest {
  const sampling = sequence.sampling!;
  const draft = draftOf(sequence);
  for (const id of draft) requireToken(sequence, id, tokenCount);
  return {
    row: row + sequence.rowCount - 1 - draft.length,
    position: drawnPosition(sequence),
    draft,
    temperature: sampling.temperature,
    topK: sampling.topK,
    topP: sampling.topP,
    minP: sampling.minP,
    seed: (BigInt(sampling.seedHigh) << 32n) | BigInt(sampling.seedLow),
    bannedTokens: int32s(sampling.bannedTokens, "banned tokens", sequence.sequence),
    topLogprobs: sampling.topLogprobs,
  };
}

/** The number of tokens before it. */
const drawnPosition = ({ validLength, rowCount, draftRows }: SequenceRows__Output): number =>
  validLength + rowCount - draftRows;

const noDraft = new Int32Array(0);

function draftOf(sequence: SequenceRows__Output): Int32Array {
  const { draftRows, rowCount, tokenIds } = sequence;
  return draftRows === 0 ? noDraft : rowValues(sequence, tokenIds, "token ids").slice(rowCount - draftRows);
}

function rowValues(sequence: SequenceRows__Output, bytes: Uint8Array, what: string): Int32Array {
  const values = int32s(bytes, what, sequence.sequence);
  if (values.length === sequence.rowCount) return values;
  throw corrupt(`sequence ${sequence.sequence} has ${values.length} ${what} for ${sequence.rowCount} rows`);
}

function int32s(bytes: Uint8Array, what: string, sequence: number): Int32Array {
  if (bytes.byteLength % Int32Array.BYTES_PER_ELEMENT === 0) return int32FromBytes(bytes);
  throw corrupt(`sequence ${sequence} has ${bytes.byteLength} bytes of ${what}: expected a multiple of 4`);
}

function requireToken(sequence: SequenceRows__Output, token: number, tokenCount: number): void {
  if (token >= 0 && token < tokenCount) return;
  throw corrupt(`sequence ${sequence.sequence} holds token ${token}: the model has ${tokenCount}`);
}

/**
 * The frame for the successor: the header as it came, with this stage's activations and compute time.
 * @param computeUs Microseconds inside the engine.
 * @param sliceActivations Of the context whose slice ended with this stage's last layer.
 */
export function stepFrame(
  header: StepHeader__Output,
  activations: Uint8Array,
  computeUs: number,
  sliceActivations: Uint8Array | null = null,
): LinkFrame {
  const stageUs = stageTimes(header, computeUs);
  const step = { header: { ...header, stageUs }, activations, checksum: checksum(activations) };
  if (sliceActivations === null) return { step };
  return { step: { ...step, sliceActivations, sliceChecksum: checksum(sliceActivations) } };
}

/** Whole microseconds; a step that takes over an hour says no more than that it took as long. */
function stageTimes(header: StepHeader__Output, computeUs: number): number[] {
  return [...header.stageUs, Math.min(Math.round(computeUs), maxStageUs)];
}

/** The last stage's answer to the coordinator: one result per sequence, in the header's order. */
export function resultFrame(
  header: StepHeader__Output,
  output: StepOutput,
): { result: StepResult & { sequences: SequenceResult[] } } {
  const samples = output.samples.values();
  const scores = output.scores.values();
  const sequences = header.sequences.map((sequence): SequenceResult => {
    const targets = int32FromBytes(sequence.scoreTargets).filter((token) => token >= 0);
    const result: SequenceResult = {
      sequence: sequence.sequence,
      scores: Array.from(targets, () => tokenMessage(take(scores))),
    };
    if (sequence.sampling === null) return result;
    const drawn = takeDrawn(samples, draftOf(sequence)).map(tokenMessage);
    return { ...result, drawn, drawnPosition: drawnPosition(sequence) };
  });
  const { epoch, pipeline, step } = header;
  return { result: { epoch, pipeline, step, sequences, stageUs: stageTimes(header, output.computeUs) } };
}

/** The sequences of an answer with a value that is NaN or infinite. */
export function nonFiniteSequences(sequences: readonly SequenceResult[]): number[] {
  const bad = sequences.filter(({ drawn, scores }) =>
    [...(drawn ?? []), ...(scores ?? [])].some(({ finite }) => finite === false),
  );
  return bad.map(({ sequence }) => sequence ?? 0);
}

function take(results: Iterator<TokenResult>): TokenResult {
  const next = results.next();
  if (next.done) throw new RelayError("stage_failed", "the engine gave fewer results than were asked for");
  return next.value;
}

/** Of one request: how many there are follows from the draft (native/index.ts, StepOutput). */
function takeDrawn(results: Iterator<TokenResult>, draft: Int32Array): TokenResult[] {
  const drawn = [take(results)];
  for (const guess of draft) {
    const { token, finite } = drawn.at(-1)!;
    if (!finite || token !== guess) break;
    drawn.push(take(results));
  }
  return drawn;
}

function tokenMessage(result: TokenResult): TokenResultMessage {
  if (!result.finite) return { finite: false };
  return {
    token: result.token,
    logprob: result.logprob,
    rank: result.rank,
    topTokens: bytesFromInt32(result.topTokens),
    topLogprobs: bytesFromFloat32(result.topLogprobs),
    finite: true,
  };
}

function corrupt(message: string): RelayError {
  return new RelayError("corrupt_message", message);
}
