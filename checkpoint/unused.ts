/**
 * Tensors of a checkpoint that the model does not use. They are seldom harmless: a bias that config.json
 * denies, layers beyond those it counts, a norm of another family.
 */
import type { MergedTensor } from "./tensors.js";

/** Computed anew, or for training; and the prefix encoder, which config.json may switch off. */
const expected = /(^|\.)(inv_freq|rotary_emb\..*|prefix_encoder\..*)$/;
const shownNames = 5;

/**
 * @param used Where the tensors in use begin.
 * @param extraLayers Behind the model's own, in files of families that have such.
 * @returns One line for people, or none.
 */
export function unusedWarnings(
  merged: ReadonlyMap<string, MergedTensor>,
  used: Iterable<{ file: string; byteOffset: number }>,
  extraLayers: { begin: number; count: number },
  directory: string,
): string[] {
  const places = new Set<string>();
  for (const place of used) places.add(key(place));
  const names = [...merged.values()]
    .filter(({ name, parts }) => !expected.test(name) && !parts.some((part) => places.has(key(part))))
    .filter(({ name }) => !isExtra(name, extraLayers))
    .map(({ name }) => name);
  if (names.length === 0) return [];
  const rest = names.length > shownNames ? `, and ${names.length - shownNames} more` : "";
  return [
    `${directory}: not used by this model, as config.json describes it: ${names.slice(0, shownNames).join(", ")}${rest}`,
  ];
}

const key = ({ file, byteOffset }: { file: string; byteOffset: number }) => `${byteOffset} ${file}`;

function isExtra(name: string, { begin, count }: { begin: number; count: number }): boolean {
  const layer = Number(/\.layers\.(\d+)\./.exec(name)?.[1] ?? Number.NaN);
  return layer >= begin && layer < begin + count;
}
