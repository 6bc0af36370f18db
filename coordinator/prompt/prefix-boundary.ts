/**
 * Where a prompt of a prefix-LM ends and its reply begins, and which blank the reply fills. Needs the ids
 * of a few tokens (checkpoint/tokenizer-file.ts, fillIdsOf), not the tokenizer.
 */
import type { FillIds } from "../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../common/errors.js";
import type { TokenIds } from "../inference.js";

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
export function prefixBoundary(ids: TokenIds, { masks, order, start }: FillIds): PrefixBoundary {
  const contextLength = Array.prototype.indexOf.call(ids, start);
  if (contextLength < 0) {
    throw new RelayError(
      "invalid_value",
      `the prompt has no token ${start}, expected one: a prefix-LM prompt holds its sop`,
      { param: "prompt" },
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
