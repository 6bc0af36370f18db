/** What a slice of a context must fulfil before the engine, which trusts it, sees it. */

import { integerIn } from "./check-config.js";
import { checkActivations, checkSequences, checkTokenIds } from "./check-step.js";
import type { SliceInput, StageConfig } from "./index.js";

/** The context whose rows wait in a stage, and the layer that is next for them. */
export interface Parked {
  rowCount: number;
  layer: number;
}

/** @throws Error that says what was expected; nothing has happened to the stage then. */
export function checkSlice(slice: SliceInput, parked: Parked | null, config: StageConfig): void {
  const { rows, layerBegin, layerEnd, tokenIds, activations } = slice;
  integerIn("slice.rows.rowCount", rows.rowCount, 1, config.contextRows);
  if (rows.startPosition !== 0 || rows.rowCount !== rows.contextLength) {
    throw new Error(
      `slice.rows: rows [${rows.startPosition}, ${rows.startPosition + rows.rowCount}); ` +
        `expected the context's, [0, ${rows.contextLength})`,
    );
  }
  checkSequences("slice.rows", [rows], config);
  integerIn("slice.layerBegin", layerBegin, config.layerBegin, config.layerEnd - 1);
  const arrives = activations !== null;
  integerIn("slice.layerEnd", layerEnd, layerBegin + (arrives ? 0 : 1), config.layerEnd);
  if (tokenIds === null && activations === null) {
    if (parked?.layer === layerBegin && parked.rowCount === rows.rowCount) return;
    const waits = parked === null ? "none are parked" : `${parked.rowCount} wait at layer ${parked.layer}`;
    throw new Error(`slice: goes on with ${rows.rowCount} rows at layer ${layerBegin}, but ${waits}`);
  }
  if (layerBegin !== config.layerBegin) {
    throw new Error(`slice: new rows come at layer ${config.layerBegin}, not ${layerBegin}`);
  }
  if (config.embedding !== null) {
    if (tokenIds === null || activations !== null) {
      throw new Error("slice: the first stage takes tokenIds and no activations");
    }
    checkTokenIds("slice.tokenIds", tokenIds, rows.rowCount, config);
    return;
  }
  if (activations === null || tokenIds !== null) {
    throw new Error("slice: a later stage takes activations and no tokenIds");
  }
  checkActivations("slice.activations", activations, rows.rowCount, config);
}

/** What waits in the stage behind a slice. */
export function parkedAfter({ rows, layerEnd }: SliceInput, config: StageConfig): Parked | null {
  return layerEnd === config.layerEnd ? null : { rowCount: rows.rowCount, layer: layerEnd };
}
