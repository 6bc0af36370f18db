/** What a step must fulfil before the engine, which trusts it, sees it. */

import { types } from "node:util";
import { dtypeBytes, integerIn } from "./check-config.js";
import type {
  BlockCopy,
  SampleRequest,
  ScoreRequest,
  SequenceRows,
  StageConfig,
  StepInput,
} from "./index.js";

const TOP_LOGPROBS_MAX = 20;
const SEED_MAX = 2n ** 64n - 1n;

/** @throws Error that says what was expected; nothing has happened to the stage then. */
export function checkStep(input: StepInput, config: StageConfig): void {
  if (input.sequences.length === 0 && input.slice === undefined) {
    throw new Error("sequences: expected at least one, or a slice");
  }
  checkCopies(input.copies ?? [], config);
  const rowCount = checkSequences("sequences", input.sequences, config);
  checkContent(input, config, rowCount);
  if (config.head === null && input.samples.length + input.scores.length > 0) {
    throw new Error("samples or scores on a stage without head");
  }
  input.samples.forEach((request, i) => {
    checkSample(`samples[${i}]`, request, config, rowCount);
  });
  input.scores.forEach((request, i) => {
    checkScore(`scores[${i}]`, request, config, rowCount);
  });
}

function checkCopies(copies: readonly BlockCopy[], { blockCount }: StageConfig): void {
  copies.forEach(({ from, to }, i) => {
    integerIn(`copies[${i}].from`, from, 0, blockCount - 1);
    integerIn(`copies[${i}].to`, to, 0, blockCount - 1);
    if (from === to) throw new Error(`copies[${i}]: block ${from} to itself`);
  });
}

/** Returns the number of rows. Shared with the checks of a slice. */
export function checkSequences(
  name: string,
  sequences: readonly SequenceRows[],
  config: StageConfig,
): number {
  const { blockSize, blockCount } = config;
  let rowCount = 0;
  const writers = new Map<number, number>();
  const prefixLength = config.prefix?.length ?? 0;
  sequences.forEach((entry, i) => {
    const { rowCount: rows, startPosition, contextLength, maskPosition, blockTable } = entry;
    const sequence = `${name}[${i}]`;
    integerIn(`${sequence}.rowCount`, rows, 1, config.maxRows);
    integerIn(`${sequence}.startPosition`, startPosition, 0, config.shape.maxPositions - 1);
    int32Array(`${sequence}.blockTable`, blockTable);
    const end = startPosition + rows;
    if (end > config.shape.maxPositions) {
      throw new Error(
        `${sequence}: ends at position ${end}, beyond maxPositions ${config.shape.maxPositions}`,
      );
    }
    integerIn(`${sequence}.contextLength`, contextLength, 0, config.shape.maxPositions);
    if (startPosition < contextLength && (startPosition > 0 || end < contextLength)) {
      throw new Error(
        `${sequence}: rows [${startPosition}, ${end}) are a part of a context of ${contextLength}, which must come as a whole`,
      );
    }
    integerIn(`${sequence}.maskPosition`, maskPosition, -1, Math.max(-1, contextLength - 1));
    const blocks = Math.ceil((prefixLength + end) / blockSize);
    if (blockTable.length < blocks) {
      throw new Error(
        `${sequence}.blockTable: ${blockTable.length} blocks are too few for ${prefixLength + end} slots; expected ${blocks}`,
      );
    }
    const firstSlot = startPosition === 0 ? 0 : prefixLength + startPosition;
    for (let j = 0; j < blocks; j++) {
      const block = blockTable[j]!;
      if (block < 0 || block >= blockCount) {
        throw new Error(`${sequence}.blockTable[${j}]: block ${block} is not one of ${blockCount}`);
      }
      // Blocks may be shared, but only to read: two writers would race for the slots.
      if (j < Math.floor(firstSlot / blockSize)) continue;
      if (writers.has(block)) {
        throw new Error(
          `${sequence}.blockTable[${j}]: block ${block} is also written by ${name}[${writers.get(block)}]`,
        );
      }
      writers.set(block, i);
    }
    rowCount += rows;
  });
  if (rowCount > config.maxRows) throw new Error(`${rowCount} rows in a step; maxRows is ${config.maxRows}`);
  return rowCount;
}

/** Token ids on the first stage, activations on the others. */
function checkContent(input: StepInput, config: StageConfig, rowCount: number): void {
  const { tokenIds, activations } = input;
  if (rowCount === 0) {
    if (tokenIds === null && activations === null) return;
    throw new Error("a step without rows takes neither tokenIds nor activations");
  }
  if (config.embedding !== null) {
    if (tokenIds === null || activations !== null) {
      throw new Error("the first stage takes tokenIds and no activations");
    }
    checkTokenIds("tokenIds", tokenIds, rowCount, config);
    return;
  }
  if (activations === null || tokenIds !== null) {
    throw new Error("a later stage takes activations and no tokenIds");
  }
  checkActivations("activations", activations, rowCount, config);
}

/** Shared with the checks of a slice. */
export function checkTokenIds(
  name: string,
  tokenIds: Int32Array,
  rowCount: number,
  config: StageConfig,
): void {
  int32Array(name, tokenIds);
  if (tokenIds.length !== rowCount) throw new Error(`${name}: ${tokenIds.length} ids for ${rowCount} rows`);
  tokenIds.forEach((token, i) => {
    checkToken(`${name}[${i}]`, token, config);
  });
}

/** Shared with the checks of a slice. */
export function checkActivations(
  name: string,
  activations: Uint8Array,
  rowCount: number,
  config: StageConfig,
): void {
  if (!types.isUint8Array(activations)) throw new Error(`${name}: expected a Uint8Array`);
  const byteLength = rowCount * config.shape.hiddenSize * dtypeBytes(config.dtype);
  if (activations.byteLength !== byteLength) {
    throw new Error(
      `${name}: ${activations.byteLength} bytes; expected ${byteLength} for ${rowCount} rows of ${config.dtype}`,
    );
  }
}

function checkToken(name: string, token: number, config: StageConfig): void {
  if (!Number.isInteger(token) || token < 0 || token >= config.shape.tokenCount) {
    throw new Error(`${name}: token ${token} is outside the vocabulary of ${config.shape.tokenCount}`);
  }
}

function checkSample(name: string, request: SampleRequest, config: StageConfig, rowCount: number): void {
  integerIn(`${name}.row`, request.row, 0, rowCount - 1);
  integerIn(`${name}.position`, request.position, 0, Number.MAX_SAFE_INTEGER);
  checkDraft(`${name}.draft`, request, config, rowCount);
  numberIn(`${name}.temperature`, request.temperature, 0, Number.MAX_VALUE);
  integerIn(`${name}.topK`, request.topK, 0, Number.MAX_SAFE_INTEGER);
  numberIn(`${name}.topP`, request.topP, 0, 1);
  numberIn(`${name}.minP`, request.minP, 0, 1);
  if (typeof request.seed !== "bigint" || request.seed < 0n || request.seed > SEED_MAX) {
    throw new Error(`${name}.seed ${request.seed}: expected a bigint of 64 bits`);
  }
  int32Array(`${name}.bannedTokens`, request.bannedTokens);
  request.bannedTokens.forEach((token, i) => {
    checkToken(`${name}.bannedTokens[${i}]`, token, config);
  });
  if (request.bannedTokens.length >= config.shape.tokenCount) {
    if (new Set(request.bannedTokens).size === config.shape.tokenCount) {
      throw new Error(`${name}.bannedTokens: every token is banned`);
    }
  }
  integerIn(`${name}.topLogprobs`, request.topLogprobs, -1, TOP_LOGPROBS_MAX);
}

function checkDraft(
  name: string,
  { row, draft }: SampleRequest,
  config: StageConfig,
  rowCount: number,
): void {
  int32Array(name, draft);
  if (row + draft.length >= rowCount) {
    throw new Error(
      `${name}: ${draft.length} tokens behind row ${row} are more than the ${rowCount - 1 - row} rows that follow it`,
    );
  }
  draft.forEach((token, i) => {
    checkToken(`${name}[${i}]`, token, config);
  });
}

function checkScore(name: string, request: ScoreRequest, config: StageConfig, rowCount: number): void {
  integerIn(`${name}.row`, request.row, 0, rowCount - 1);
  checkToken(`${name}.token`, request.token, config);
  integerIn(`${name}.topLogprobs`, request.topLogprobs, 0, TOP_LOGPROBS_MAX);
}

function numberIn(name: string, value: number, min: number, max: number): void {
  if (!(value >= min && value <= max)) {
    throw new Error(`${name} ${value}: expected a number from ${min} to ${max}`);
  }
}

/** The engine reads the memory of typed arrays, so another kind of array is no option. */
function int32Array(name: string, value: Int32Array): void {
  if (!types.isInt32Array(value)) throw new Error(`${name}: expected an Int32Array`);
}
