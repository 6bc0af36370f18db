/**
 * Where a prompt of a prefix-LM ends and its reply begins, and which blank the reply fills. Needs the ids
 * of a few tokens (checkpoint/tokenizer-file.ts, fillIdsOf), not the tokenizer.
 */
import type { PrefixModel } from "../../checkpoint/index.js";
import type { FillIds } from "../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../common/errors.js";
import type { PromptContext, TokenIds } from "../inference.js";

export interface PrefixBoundary {
  /** Index of the first `sop`: the tokens in front of it are seen from everywhere, it and the rest are not. */
  contextLength: number;
  /** Index of the mask that is filled; null in a prompt without any. */
  maskPosition: number | null;
  /** Id of that mask. */
  mask: number | null;
  /** Indices of the masks that are to be filled afterwards, in this order. */
  remainingMasks: number[];
}

/** @throws RelayError invalid_value for a prompt without its `sop`. */
export function prefixBoundary(
  ids: TokenIds,
  { masks, order, start }: FillIds,
  param = "prompt",
): PrefixBoundary {
  const contextLength = Array.prototype.indexOf.call(ids, start);
  if (contextLength < 0) {
    throw new RelayError(
      "invalid_value",
      `${param}: no token ${start}, expected one: a prompt of a prefix-LM holds its sop`,
      { param },
    );
  }
  const places: number[] = [];
  for (let index = 0; index < contextLength; index++) if (masks.includes(ids[index]!)) places.push(index);
  const preferred =
    order === "place" ? undefined : masks.find((mask) => places.some((at) => ids[at] === mask));
  const toFill = places.filter((at) => preferred === undefined || ids[at] === preferred);
  const [maskPosition = null, ...remainingMasks] = toFill;
  const mask = maskPosition === null ? null : ids[maskPosition]!;
  return { contextLength, maskPosition, mask, remainingMasks };
}

/**
 * How the prompt is read.
 * @param param Name of the field that it came in, for errors.
 * @throws RelayError as prefixBoundary does.
 */
export function promptContext(
  ids: TokenIds,
  { fill, constantPositionMasks }: PrefixModel,
  param: string,
): PromptContext {
  const { contextLength, maskPosition, mask, remainingMasks } = prefixBoundary(ids, fill, param);
  return {
    length: contextLength,
    mask: maskPosition ?? -1,
    constantPosition: mask !== null && constantPositionMasks.includes(mask),
    remainingMasks,
  };
}

/**
 * The prompt for the next blank: the context in which the first one is filled. Masks that are filled in one
 * prompt are alike in whether the reply takes their position: they are of one kind, or all kinds are alike.
 * @param reply Tokens behind the prompt's start token, without one that ended them.
 */
export function nextBlank(
  prompt: TokenIds,
  context: PromptContext,
  reply: readonly number[],
): { promptTokens: Int32Array; context: PromptContext } {
  const ids = Array.from(prompt);
  const { length, mask, constantPosition, remainingMasks } = context;
  const filling = [...ids.slice(length + 1), ...reply];
  const before = ids.slice(0, mask);
  const after = ids.slice(mask + 1, length + 1);
  const moved = filling.length - 1;
  const [next = -1, ...rest] = remainingMasks.map((at) => (at > mask ? at + moved : at));
  return {
    promptTokens: Int32Array.from([...before, ...filling, ...after]),
    context: { length: length + moved, mask: next, constantPosition, remainingMasks: rest },
  };
}
