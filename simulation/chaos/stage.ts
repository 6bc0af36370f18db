/**
 * What a stage of the simulated model computes for one step, and what it finds wrong with the header: block tables,
 * slices and copies as a worker keeps them, with the values of every layer in the slots that the header names.
 */
import { int32FromBytes } from "../../common/bytes.js";
import { kvBlockSize } from "../../common/limits.js";
import type { SequenceRows__Output } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { StepHeader__Output } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import { attend, attentionStart, draw, embed, layerCount, leave, store } from "./model.js";

/** A step between two stages. */
export interface SimStep {
  header: StepHeader__Output;
  /** Of each sequence, its rows as they left the stage before; empty on the way to the first one. */
  rows: number[][];
  /** Of a context whose slice ended with the last layer of the stage before; else null. */
  sliceRows: number[] | null;
}

export interface StageShape {
  layerBegin: number;
  layerEnd: number;
  blockCount: number;
  prefixLength: number;
  maxRows: number;
}

interface Parked {
  sequence: number;
  layer: number;
  rows: number[];
}

/** The header cannot be right. */
export class BadHeader extends Error {}

export class Stage {
  readonly #shape: StageShape;
  readonly #tables = new Map<number, number[]>();
  /** Tokens by slot: the last stage draws with them. */
  readonly #tokens: Int32Array;
  readonly #layers: Uint32Array[];
  #parked: Parked | null = null;

  constructor(shape: StageShape) {
    this.#shape = shape;
    const slots = shape.blockCount * kvBlockSize;
    // What an earlier plan left there: nothing that is read may be of it.
    this.#tokens = new Int32Array(slots).fill(-1);
    const { layerBegin, layerEnd } = shape;
    this.#layers = Array.from({ length: layerEnd - layerBegin }, () => new Uint32Array(slots).fill(0xdead));
  }

  /**
   * @returns What goes on to the next stage; its rows are what is drawn from, behind the last one.
   * @throws BadHeader
   */
  compute({ header, rows: arrived, sliceRows: arrivedSlice }: SimStep): SimStep {
    for (const sequence of header.ended) this.#tables.delete(sequence);
    if (this.#parked !== null && header.ended.includes(this.#parked.sequence)) this.#parked = null;
    for (const { from, to } of header.copies) this.#copy(from, to);
    const sliceRows = this.#slice(header, arrivedSlice);
    const { layerBegin, maxRows } = this.#shape;
    const seen = new Set<number>();
    let total = 0;
    const rows = header.sequences.map((sequence, index) => {
      const name = `sequence ${sequence.sequence}`;
      if (seen.has(sequence.sequence)) throw new BadHeader(`${name} comes twice`);
      if (this.#parked?.sequence === sequence.sequence) {
        throw new BadHeader(`${name} has rows, but its context waits at layer ${this.#parked.layer}`);
      }
      seen.add(sequence.sequence);
      total += sequence.rowCount;
      this.#note(sequence);
      return layerBegin === 0 ? Array.from(int32FromBytes(sequence.tokenIds), embed) : arrived[index]!;
    });
    if (total > maxRows) throw new BadHeader(`${total} rows: at most ${maxRows} fit`);
    const { layerEnd } = this.#shape;
    for (let layer = layerBegin; layer < layerEnd; layer++) this.#layer(layer, header.sequences, rows);
    return { header, rows, sliceRows };
  }

  /** Tokens drawn behind the decided row of a sequence, and behind drafts as long as they hold. */
  drawn(sequence: SequenceRows__Output, rows: readonly number[]): number[] {
    const { validLength, rowCount, draftRows, sampling } = sequence;
    const table = this.#tables.get(sequence.sequence)!;
    const tokenAt = (position: number) => this.#tokens[this.#slot(table, position)]!;
    const end = validLength + rowCount;
    const { temperature, seedLow, seedHigh, bannedTokens } = sampling!;
    const drawing = { temperature, seedLow, seedHigh, banned: [...int32FromBytes(bannedTokens)] };
    const drawn: number[] = [];
    for (let length = end - draftRows; length <= end; length++) {
      drawn.push(draw(rows[length - 1 - validLength]!, length, tokenAt, drawing));
      if (length < end && drawn.at(-1) !== tokenAt(length)) break;
    }
    return drawn;
  }

  /** All rows of a layer are stored before any is read: a sequence may begin with what another one stores just now. */
  #layer(layer: number, sequences: readonly SequenceRows__Output[], rows: number[][]): void {
    for (const [index, sequence] of sequences.entries()) {
      this.#store(layer, this.#tables.get(sequence.sequence)!, sequence.validLength, rows[index]!);
    }
    for (const [index, sequence] of sequences.entries()) {
      rows[index] = this.#attention(layer, sequence, rows[index]!);
    }
  }

  #store(layer: number, table: readonly number[], start: number, rows: readonly number[]): void {
    const slots = this.#layers[layer - this.#shape.layerBegin]!;
    for (const [index, row] of rows.entries()) slots[this.#slot(table, start + index)] = store(row, layer);
  }

  #attention(layer: number, sequence: SequenceRows__Output, rows: readonly number[]): number[] {
    const table = this.#tables.get(sequence.sequence)!;
    const slots = this.#layers[layer - this.#shape.layerBegin]!;
    const { validLength, context } = sequence;
    const contextLength = context?.length ?? 0;
    let state = attentionStart(layer, contextLength, context?.maskPosition ?? -1);
    const left: number[] = [];
    const end = validLength + rows.length;
    for (let position = 0; position < end; position++) {
      state = attend(state, slots[this.#slot(table, position)]!);
      if (position + 1 < contextLength) continue;
      // The last row of a context: all of them see as far as here.
      const first = position + 1 === contextLength ? validLength : position;
      for (let row = Math.max(first, validLength); row <= position; row++) {
        left.push(leave(rows[row - validLength]!, state));
      }
    }
    return left;
  }

  /** The block table and the tokens of the rows. */
  #note(rows: SequenceRows__Output): void {
    const { sequence, validLength, rowCount, context } = rows;
    const { blockCount, prefixLength } = this.#shape;
    const name = `sequence ${sequence}`;
    const table = this.#tables.get(sequence) ?? [];
    const tokens = int32FromBytes(rows.tokenIds);
    table.push(...int32FromBytes(rows.newBlocks));
    this.#tables.set(sequence, table);
    if (rowCount < 1) throw new BadHeader(`${name} has ${rowCount} rows`);
    const bad = table.find((block) => block < 0 || block >= blockCount);
    if (bad !== undefined) throw new BadHeader(`${name} names block ${bad} of ${blockCount}`);
    if (new Set(table).size < table.length) throw new BadHeader(`${name} has a block twice: ${table}`);
    const slots = prefixLength + validLength + rowCount;
    if (slots > table.length * kvBlockSize) {
      throw new BadHeader(`${name} needs ${slots} slots: its ${table.length} blocks have fewer`);
    }
    if (context !== null && validLength < context.length && (validLength > 0 || rowCount < context.length)) {
      throw new BadHeader(`${name} has rows [${validLength}, ${validLength + rowCount}) of its context`);
    }
    for (const [index, token] of tokens.entries()) {
      this.#tokens[this.#slot(table, validLength + index)] = token;
    }
  }

  /** @returns The context's rows when they leave this stage. */
  #slice({ slice }: StepHeader__Output, arrived: number[] | null): number[] | null {
    if (slice === null) return null;
    const { layerBegin, layerEnd } = slice;
    const rows = slice.rows!;
    const { sequence } = rows;
    const own = this.#shape;
    const name = `slice [${layerBegin}, ${layerEnd}) of sequence ${sequence}`;
    const isInside = layerBegin >= own.layerBegin && layerEnd <= own.layerEnd;
    const isOutside = layerBegin >= own.layerEnd || layerEnd <= own.layerBegin;
    if (!isInside && !isOutside) throw new BadHeader(`${name} is of several stages`);
    if (layerBegin === 0) this.#note(rows);
    if (layerEnd === own.layerBegin) {
      if (this.#parked !== null || arrived === null) throw new BadHeader(`${name} cannot wait here`);
      this.#parked = { sequence, layer: layerEnd, rows: arrived };
      return null;
    }
    if (isOutside) return null;
    if (layerBegin === 0) {
      if (this.#parked !== null) throw new BadHeader(`${name}: sequence ${this.#parked.sequence} waits here`);
      this.#parked = { sequence, layer: 0, rows: Array.from(int32FromBytes(rows.tokenIds), embed) };
    }
    const parked = this.#parked;
    if (parked?.sequence !== sequence || parked.layer !== layerBegin) {
      throw new BadHeader(`${name}: layer ${parked?.layer} of sequence ${parked?.sequence} waits here`);
    }
    const table = this.#tables.get(sequence)!;
    for (let layer = layerBegin; layer < layerEnd; layer++) {
      this.#store(layer, table, 0, parked.rows);
      parked.rows = this.#attention(layer, rows, parked.rows);
    }
    parked.layer = layerEnd;
    if (layerEnd < own.layerEnd) return null;
    this.#parked = null;
    return layerEnd === layerCount ? null : parked.rows;
  }

  #copy(from: number, to: number): void {
    const { blockCount } = this.#shape;
    if (from >= blockCount || to >= blockCount || from === to) {
      throw new BadHeader(`block ${from} cannot be copied to ${to}`);
    }
    const begin = from * kvBlockSize;
    for (const slots of [this.#tokens, ...this.#layers]) {
      slots.copyWithin(to * kvBlockSize, begin, begin + kvBlockSize);
    }
  }

  #slot(table: readonly number[], position: number): number {
    const at = this.#shape.prefixLength + position;
    return table[Math.floor(at / kvBlockSize)]! * kvBlockSize + (at % kvBlockSize);
  }
}
