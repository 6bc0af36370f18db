/**
 * The slices of contexts as one stage sees them: which layers of a context are its own, when the rows arrive
 * and when they go on. Remembers whose rows wait in the stage (one context at a time); the engine holds them.
 */
import { RelayError } from "../common/errors.js";
import type { SliceInput } from "../native/index.js";
import type { Slice__Output } from "../proto/generated/glm/relay/internal/v1/Slice.js";
import type { StepHeader__Output } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import { contextOf, tableChange, tokenIdsOf } from "./codec.js";
import type { TableChange } from "./kv-cache/block-tables.js";

/** What the reader must know of the stage that it reads for. */
export interface SliceFormat {
  /** Layers of the stage. */
  layerBegin: number;
  layerEnd: number;
  /** Of the model. */
  layerCount: number;
  /** Bytes of one row of activations. */
  rowBytes: number;
  /** Ids of tokens are below it. */
  tokenCount: number;
  /** Rows of the longest context; 0: the model's attention is causal, and there are no slices. */
  contextRows: number;
}

export interface ReadSlice {
  change: TableChange;
  /** The engine's part of it, given the sequence's block table; null when other stages compute the slice. */
  input: ((blockTable: Int32Array) => SliceInput) | null;
}

/** A context whose rows wait here, and the layer that is next for them. */
interface Parked {
  sequence: number;
  rowCount: number;
  layer: number;
}

export class SliceReader {
  readonly #format: SliceFormat;
  #parked: Parked | null = null;

  constructor(format: SliceFormat) {
    this.#format = format;
  }

  /** The sequence whose rows wait here; null when none do. */
  get parkedSequence(): number | null {
    return this.#parked?.sequence ?? null;
  }

  /**
   * @param activations Of the slice's rows, as they came with the header.
   * @returns null for a step without a slice.
   * @throws RelayError corrupt_message for a slice that does not go on where the last one ended, or that is
   *   not one of a whole context within one stage; nothing has changed then.
   */
  read(header: StepHeader__Output, activations: Uint8Array): ReadSlice | null {
    const { slice, ended, sequences } = header;
    const waiting = this.#parked;
    const parked = waiting !== null && ended.includes(waiting.sequence) ? null : waiting;
    if (slice === null) {
      if (activations.byteLength > 0) throw corrupt("activations of a slice came without one");
      requireNoRows(sequences, parked);
      this.#parked = parked;
      return null;
    }
    const rows = requireContext(slice, this.#format);
    const { role, after } = this.#place(slice, rows.rowCount, parked);
    requireNoRows(sequences, after);
    const expected = role === "arrives" ? rows.rowCount * this.#format.rowBytes : 0;
    if (activations.byteLength !== expected) {
      throw corrupt(
        `${name(slice)}: ${activations.byteLength} bytes of activations came: expected ${expected}`,
      );
    }
    const tokenIds = slice.layerBegin === 0 ? tokenIdsOf(rows, this.#format.tokenCount) : null;
    if (tokenIds === null && rows.tokenIds.length > 0) {
      throw corrupt(`${name(slice)}: token ids come with the first slice only`);
    }
    const change = tableChange(rows);
    const place = { rowCount: rows.rowCount, startPosition: 0, ...contextOf(rows) };
    this.#parked = after;
    if (role === "elsewhere") return { change, input: null };
    const { layerBegin, layerEnd } = role === "arrives" ? arrival(this.#format) : slice;
    return {
      change,
      input: (blockTable) => ({
        rows: { ...place, blockTable },
        layerBegin,
        layerEnd,
        tokenIds: role === "computes" ? tokenIds : null,
        activations: role === "arrives" ? activations : null,
      }),
    };
  }

  /** What this stage has to do with the slice, and who waits here behind it. */
  #place(
    slice: Slice__Output,
    rowCount: number,
    parked: Parked | null,
  ): { role: "computes" | "arrives" | "elsewhere"; after: Parked | null } {
    const format = this.#format;
    const { layerBegin, layerEnd } = slice;
    const sequence = slice.rows!.sequence;
    const begins = layerBegin === 0 && format.layerBegin === 0;
    const arrives = layerEnd === format.layerBegin;
    const inside = layerBegin >= format.layerBegin && layerEnd <= format.layerEnd;
    const outside = layerBegin >= format.layerEnd || layerEnd <= format.layerBegin;
    if (!inside && !outside) {
      throw corrupt(
        `${name(slice)}: the stage has [${format.layerBegin}, ${format.layerEnd}): expected all or none of them there`,
      );
    }
    if (outside && !arrives) {
      if (parked?.sequence !== sequence) return { role: "elsewhere", after: parked };
      throw corrupt(`${name(slice)}: its rows wait at layer ${parked.layer}`);
    }
    if (begins || arrives) {
      if (parked !== null) {
        throw corrupt(`${name(slice)}: rows of sequence ${parked.sequence} wait at layer ${parked.layer}`);
      }
    } else if (parked?.sequence !== sequence || parked.layer !== layerBegin) {
      const found =
        parked === null ? "none" : `those of sequence ${parked.sequence} at layer ${parked.layer}`;
      throw corrupt(`${name(slice)}: expected its rows to wait at layer ${layerBegin}, found ${found}`);
    } else if (parked.rowCount !== rowCount) {
      throw corrupt(`${name(slice)} has ${rowCount} rows: ${parked.rowCount} wait in the stage`);
    }
    if (arrives) return { role: "arrives", after: { sequence, rowCount, layer: layerEnd } };
    const after = layerEnd === format.layerEnd ? null : { sequence, rowCount, layer: layerEnd };
    return { role: "computes", after };
  }
}

const arrival = ({ layerBegin }: SliceFormat) => ({ layerBegin, layerEnd: layerBegin });

/** The slice's rows, which are exactly those of a context. */
function requireContext(slice: Slice__Output, { layerCount, contextRows }: SliceFormat) {
  const { rows, layerBegin, layerEnd } = slice;
  if (rows === null) throw corrupt("a slice has no rows: expected those of a context");
  if (layerBegin >= layerEnd || layerEnd > layerCount) {
    throw corrupt(`${name(slice)}: expected at least one of the model's ${layerCount} layers`);
  }
  const { sequence, validLength, rowCount, context, sampling, scoreTargets, draftRows } = rows;
  if (context === null || validLength !== 0 || rowCount !== context.length) {
    throw corrupt(
      `slice of sequence ${sequence} has the rows [${validLength}, ${validLength + rowCount}): ` +
        `expected a context's, [0, ${context?.length ?? "its length"})`,
    );
  }
  if (rowCount < 1 || rowCount > contextRows) {
    throw corrupt(`slice of sequence ${sequence} has ${rowCount} rows: expected 1 to ${contextRows}`);
  }
  if (sampling !== null || scoreTargets.length > 0 || draftRows > 0) {
    throw corrupt(`slice of sequence ${sequence} asks for results: rows of a context give none`);
  }
  return rows;
}

/** Rows behind a context read what all of its layers have stored. */
function requireNoRows(sequences: StepHeader__Output["sequences"], parked: Parked | null): void {
  if (parked === null || sequences.every(({ sequence }) => sequence !== parked.sequence)) return;
  throw corrupt(
    `sequence ${parked.sequence} has rows in a step while its context waits at layer ${parked.layer}`,
  );
}

const name = ({ rows, layerBegin, layerEnd }: Slice__Output): string =>
  `slice of sequence ${rows?.sequence} for layers [${layerBegin}, ${layerEnd})`;

function corrupt(message: string): RelayError {
  return new RelayError("corrupt_message", message);
}
