/** What the coordinator must know of a prefix-LM to divide a prompt: ids of its masks and of its start token. */
import { maxContextRows } from "../common/limits.js";
import type { ModelCard } from "../models/card.js";
import type { ModelShape } from "../models/shape.js";
import { type FillIds, fillIdsOf, type TokenizerFile } from "./tokenizer-file.js";

export interface PrefixModel {
  fill: FillIds;
  /** Masks whose position all of the reply takes. */
  constantPositionMasks: number[];
  /** In front of a text that is read causally; null: the model was not trained to. */
  causalPrefix: number[] | null;
}

/** Rows of the longest context that is read as a whole; 0 for causal attention. */
export function contextRowsOf({ card, shape }: { card: ModelCard; shape: ModelShape }): number {
  return card.attention.kind === "causal" ? 0 : Math.min(shape.maxPositions, maxContextRows);
}

/**
 * @param file null for a directory without a tokenizer: ids are those of config.json, else the published ones.
 * @returns null for a causal model.
 * @throws RelayError invalid_model when the file lacks one of the tokens.
 */
export function prefixModelOf(
  card: ModelCard,
  file: TokenizerFile | null,
  config: Record<string, unknown>,
): PrefixModel | null {
  const { attention, tokenizer } = card;
  const found = fillIdsOf(file, card);
  if (attention.kind === "causal" || found === null || !tokenizer.fill) return null;
  const { masks: names, append, configFields } = tokenizer.fill;
  const fill = file === null && configFields ? fromConfig(found, configFields, config) : found;
  const idOf = (name: string) => fill.masks[names.indexOf(name)]!;
  return {
    fill,
    constantPositionMasks: attention.constantPositionMasks.map(idOf),
    causalPrefix: attention.causalMode ? [idOf(append), fill.start] : null,
  };
}

function fromConfig(
  fill: FillIds,
  fields: { masks: readonly string[]; start: string },
  config: Record<string, unknown>,
): FillIds {
  const read = (field: string, otherwise: number): number => {
    const value = config[field];
    return typeof value === "number" && Number.isSafeInteger(value) ? value : otherwise;
  };
  return {
    ...fill,
    masks: fields.masks.map((field, index) => read(field, fill.masks[index]!)),
    start: read(fields.start, fill.start),
  };
}
