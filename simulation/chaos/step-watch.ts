/**
 * Looks at every header and result of a coordinator: the order of steps, who writes which block, and whether a block
 * goes to somebody else while a step that names it is on its way.
 */
import { int32FromBytes } from "../../common/bytes.js";
import { type Epoch, formatEpoch } from "../../common/ids.js";
import { kvBlockSize, maxMicroBatchesInFlight, maxStepRows } from "../../common/limits.js";
import type { SequenceRows } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { World } from "./world.js";

interface InFlight {
  step: number;
  sequences: Set<number>;
  /** Blocks that its rows read, by the sequence that has them. */
  blocks: Map<number, number>;
}

export class StepWatch {
  readonly #world: World;
  readonly #name: string;
  readonly #prefixLength: number;
  readonly #tables = new Map<number, number[]>();
  /** Of every block, who wrote into it last and still has it. */
  readonly #writers = new Map<number, number>();
  readonly #inFlight: InFlight[] = [];
  #lastStep = 0;

  constructor(world: World, epoch: Epoch, prefixLength: number) {
    this.#world = world;
    this.#name = `epoch ${formatEpoch(epoch)}`;
    this.#prefixLength = prefixLength;
  }

  sent(header: StepHeader): void {
    const step = Number(header.step);
    const name = `${this.#name}, step ${step}`;
    const fail = (message: string) =>
      this.#world.violate("steps come in order and within limits", `${name}: ${message}`);
    if (step !== this.#lastStep + 1) fail(`follows step ${this.#lastStep}`);
    this.#lastStep = step;
    for (const sequence of header.ended ?? []) this.#ended(sequence, name);
    const own = header.sequences ?? [];
    const all = header.slice?.rows == null ? own : [header.slice.rows, ...own];
    const decided = own.reduce((sum, rows) => sum + rows.rowCount!, 0);
    const contexts = own.reduce((sum, { context, validLength }) => {
      return sum + (context != null && validLength! < context.length! ? context.length! : 0);
    }, 0);
    if (decided - contexts > maxStepRows) fail(`${decided - contexts} rows`);
    const entry: InFlight = { step, sequences: new Set(), blocks: new Map() };
    for (const rows of own) {
      const sequence = rows.sequence!;
      if (entry.sequences.has(sequence)) fail(`sequence ${sequence} comes twice`);
      if (this.#inFlight.some(({ sequences }) => sequences.has(sequence))) {
        fail(`sequence ${sequence} is in another step`);
      }
      entry.sequences.add(sequence);
    }
    for (const { from, to } of header.copies ?? []) {
      // Who wrote it may go on behind what is copied: steps reach every stage in order.
      entry.blocks.set(from!, this.#writers.get(from!) ?? -1);
      this.#requireFree(to!, -1, name);
    }
    for (const rows of all) this.#note(rows, entry, name);
    this.#inFlight.push(entry);
    if (this.#inFlight.length > maxMicroBatchesInFlight) fail(`${this.#inFlight.length} are in flight`);
  }

  finished(step: number): void {
    if (this.#inFlight[0]?.step === step) this.#inFlight.shift();
  }

  #note(rows: SequenceRows, entry: InFlight, name: string): void {
    const sequence = rows.sequence!;
    const table = this.#tables.get(sequence) ?? [];
    const added = int32FromBytes(rows.newBlocks as Uint8Array);
    table.push(...added);
    this.#tables.set(sequence, table);
    const begin = Math.floor((this.#prefixLength + rows.validLength!) / kvBlockSize);
    const end = Math.ceil((this.#prefixLength + rows.validLength! + rows.rowCount!) / kvBlockSize);
    for (const block of table.slice(begin, end)) {
      const writer = this.#writers.get(block);
      if (writer !== undefined && writer !== sequence) {
        const message = `${name}: sequences ${writer} and ${sequence} write into block ${block}`;
        this.#world.violate("a block has one writer", message);
      }
      this.#requireFree(block, sequence, name);
      this.#writers.set(block, sequence);
    }
    // Those in front are shared, perhaps.
    for (const block of table.slice(0, end)) entry.blocks.set(block, sequence);
  }

  /** Nobody else's step on its way may read a block that is written. */
  #requireFree(block: number, sequence: number, name: string): void {
    for (const { step, blocks } of this.#inFlight) {
      const reader = blocks.get(block);
      if (reader === undefined || reader === sequence) continue;
      const message = `${name}: block ${block} is written for sequence ${sequence}, but step ${step} reads it for ${reader}`;
      this.#world.violate("a block in flight is not reused", message);
    }
  }

  #ended(sequence: number, name: string): void {
    for (const { step, sequences } of this.#inFlight) {
      if (!sequences.has(sequence)) continue;
      const message = `${name}: sequence ${sequence} has ended, but step ${step} has rows of it`;
      this.#world.violate("a block in flight is not reused", message);
    }
    for (const block of this.#tables.get(sequence) ?? []) {
      if (this.#writers.get(block) === sequence) this.#writers.delete(block);
    }
    this.#tables.delete(sequence);
  }
}
