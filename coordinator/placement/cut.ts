/** Contiguous cuts of a model's layers: every one of them is compared, the best by some score wins. Pure. */

export interface LayerRange {
  layerBegin: number;
  /** Exclusive. */
  layerEnd: number;
}

export interface CutScore<Score> {
  /** Of a cut without stages. */
  none: Score;
  /**
   * Of a cut with one more stage; null when the stage may not have these layers. A better cut must not
   * become worse than another one by the same stage behind both.
   */
  extend(score: Score, stage: number, layers: LayerRange): Score | null;
  isBetter(score: Score, than: Score): boolean;
}

export interface Cut<Score> {
  score: Score;
  /** One per stage. */
  ranges: LayerRange[];
}

/**
 * Dynamic programming over contiguous cuts, exact for layers of any sizes and workers of any speeds:
 * best[j][l] = best over k of extend(best[j-1][k], layers k to l), where best[j][l] is the best cut of the
 * first l layers into j stages. O(stages * layers^2); 92 layers take some milliseconds.
 * @returns Of equal cuts the one whose earlier stages have more layers; null when there is none.
 * @see reference/pipeline-theory.md, 2.2: the way for unequal layers. With equal ones it finds what the
 *   bisection there finds.
 */
export function bestCut<Score>(
  stageCount: number,
  layerCount: number,
  { none, extend, isBetter }: CutScore<Score>,
): Cut<Score> | null {
  // By the number of layers that the stages so far hold together.
  let scores: (Score | null)[] = [none];
  /** Where stage j begins in the best cut that ends it at l. */
  const begins: number[][] = [];
  for (let stage = 0; stage < stageCount; stage++) {
    const next: (Score | null)[] = [];
    const begin: number[] = [];
    // Each earlier and each later stage needs a layer of its own.
    const endMost = layerCount - (stageCount - 1 - stage);
    for (let layerEnd = stage + 1; layerEnd <= endMost; layerEnd++) {
      let best: Score | null = null;
      for (let layerBegin = layerEnd - 1; layerBegin >= stage; layerBegin--) {
        const before = scores[layerBegin] ?? null;
        if (before === null) continue;
        const score = extend(before, stage, { layerBegin, layerEnd });
        if (score === null || (best !== null && !isBetter(score, best))) continue;
        best = score;
        begin[layerEnd] = layerBegin;
      }
      next[layerEnd] = best;
    }
    scores = next;
    begins.push(begin);
  }
  const score = scores[layerCount] ?? null;
  if (score === null) return null;
  const ranges: LayerRange[] = [];
  for (let stage = stageCount - 1, layerEnd = layerCount; stage >= 0; stage--) {
    const layerBegin = begins[stage]![layerEnd]!;
    ranges.unshift({ layerBegin, layerEnd });
    layerEnd = layerBegin;
  }
  return { score, ranges };
}

/** "layers 0-17", or "layer 4": as people and `--layers` write them, both ends included. */
export function rangeName({ layerBegin, layerEnd }: LayerRange): string {
  return layerEnd - layerBegin === 1 ? `layer ${layerBegin}` : `layers ${layerBegin}-${layerEnd - 1}`;
}
