/** Steps as the coordinator sends them. */
import { bytesFromInt32, checksum } from "../../../../common/bytes.js";
import type { LinkFrame } from "../../../../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { SequenceRows__Output } from "../../../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { StepHeader__Output } from "../../../../proto/generated/glm/relay/internal/v1/StepHeader.js";

export const greedy: SequenceRows__Output["sampling"] = {
  temperature: 0,
  topK: 0,
  topP: 1,
  minP: 0,
  seedLow: 5,
  seedHigh: 0,
  topLogprobs: -1,
  bannedTokens: Buffer.alloc(0),
};

/** Rows of a sequence, one per token; a test changes what it is about. */
export function rowsOf(
  sequence: number,
  tokens: number[],
  changes: Partial<SequenceRows__Output> = {},
): SequenceRows__Output {
  return {
    sequence,
    validLength: 0,
    rowCount: tokens.length,
    tokenIds: bytesFromInt32(tokens),
    newBlocks: Buffer.alloc(0),
    sampling: null,
    scoreTargets: Buffer.alloc(0),
    scoreTopLogprobs: 0,
    context: null,
    requestId: "",
    draftRows: 0,
    ...changes,
  };
}

export function headerOf(
  step: number,
  sequences: SequenceRows__Output[],
  changes: Partial<StepHeader__Output> = {},
): StepHeader__Output {
  return {
    epoch: { term: 1, plan: 1 },
    pipeline: 0,
    step,
    sequences,
    ended: [],
    stageUs: [],
    slice: null,
    copies: [],
    ...changes,
  };
}

export function stepOf(header: StepHeader__Output, activations: Uint8Array = Buffer.alloc(0)): LinkFrame {
  return { step: { header, activations, checksum: checksum(activations) } };
}
