/** What a step asks of every stage, read from its header: rows, and the keys that they see. */
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";

/** Rows of one sequence in a step. */
export interface SequencePart {
  /** Tokens in front of them. */
  start: number;
  rows: number;
  /** Rows of a context that all see each other. */
  context: number;
}

export interface SliceWork extends SequencePart {
  layerBegin: number;
  layerEnd: number;
}

export interface StepWork {
  parts: readonly SequencePart[];
  rows: number;
  /** Rows times keys that they see. */
  keyPairs: number;
  /** Tokens whose keys and values are read: rows of one sequence read them together, a tile at a time. */
  keyReads: number;
  /** Rows whose logits are computed. */
  sampled: number;
  slice: SliceWork | null;
}

/** Queries of one sequence that share a reading of its keys and values. */
const queryTile = 32;

export function stepWork({ sequences = [], slice }: StepHeader): StepWork {
  const parts = sequences.map(({ validLength = 0, rowCount = 0, context }) => ({
    start: validLength,
    rows: rowCount,
    context: validLength === 0 ? (context?.length ?? 0) : 0,
  }));
  let sampled = 0;
  for (const { sampling, draftRows = 0 } of sequences) if (sampling != null) sampled += 1 + draftRows;
  return {
    ...sizeOf(parts),
    parts,
    sampled,
    slice:
      slice?.rows == null
        ? null
        : {
            start: 0,
            rows: slice.rows.rowCount ?? 0,
            context: slice.rows.rowCount ?? 0,
            layerBegin: slice.layerBegin ?? 0,
            layerEnd: slice.layerEnd ?? 0,
          },
  };
}

export function sizeOf(parts: readonly SequencePart[]): Pick<StepWork, "rows" | "keyPairs" | "keyReads"> {
  let rows = 0;
  let keyPairs = 0;
  let keyReads = 0;
  for (const part of parts) {
    rows += part.rows;
    keyPairs += keyPairsOf(part);
    keyReads += (part.start + part.rows) * Math.ceil(part.rows / queryTile);
  }
  return { rows, keyPairs, keyReads };
}

/** Rows of a context see all of it, the others themselves and what stands before them. */
export function keyPairsOf({ start, rows, context }: SequencePart): number {
  const whole = Math.min(rows, context);
  const others = rows - whole;
  return whole * whole + others * (start + whole) + (others * (others + 1)) / 2;
}
