/** The checks that workers make of every step, for all stages of a pipeline, without computing anything. */
import { expect } from "vitest";
import { kvBlockSize } from "../../common/limits.js";
import type { LayerRange } from "../../coordinator/placement/cut.js";
import type {
  StepHeader,
  StepHeader__Output,
} from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import { packageDefinition } from "../../proto/load.js";
import { decodeStep } from "../../worker/codec.js";
import { BlockTables } from "../../worker/kv-cache/block-tables.js";
import { SliceReader } from "../../worker/slices.js";

/** Encodes and decodes a header as the link does. */
export function received(header: StepHeader): StepHeader__Output {
  const { Connect } = packageDefinition["glm.relay.internal.v1.Link"] as {
    Connect: {
      responseSerialize(frame: object): Buffer;
      responseDeserialize(bytes: Buffer): { step: { header: StepHeader__Output } };
    };
  } & (typeof packageDefinition)[string];
  return Connect.responseDeserialize(Connect.responseSerialize({ step: { header } })).step.header;
}

/** What a worker checks of every step, for all stages, and which layers of a context have been computed. */
export class CheckingStages {
  readonly computed = new Map<number, number>();
  readonly #stages: { reader: SliceReader; tables: BlockTables; layers: LayerRange; isLast: boolean }[];

  constructor(stages: readonly LayerRange[], blockCount: number, prefixLength: number) {
    const layerCount = stages.at(-1)!.layerEnd;
    this.#stages = stages.map((layers, index) => ({
      reader: new SliceReader({ ...layers, layerCount, rowBytes: 1, tokenCount: 100, contextRows: 200 }),
      tables: new BlockTables(blockCount, kvBlockSize, prefixLength),
      layers,
      isLast: index === stages.length - 1,
    }));
  }

  get parked(): number {
    return this.#stages.filter(({ reader }) => reader.parkedSequence !== null).length;
  }

  step(header: StepHeader__Output): void {
    for (const sequence of header.ended) this.computed.delete(sequence);
    let arriving = 0;
    const rows = header.sequences.reduce((sum, { rowCount }) => sum + rowCount, 0);
    for (const [index, { reader, tables, layers, isLast }] of this.#stages.entries()) {
      const first = index === 0;
      const slice = reader.read(header, Buffer.alloc(arriving));
      arriving = 0;
      const format = { first, last: isLast, stage: index, rowBytes: 1, tokenCount: 100, maxRows: 264 };
      const timed = { ...header, stageUs: new Array<number>(index).fill(0) };
      const input = decodeStep(timed, Buffer.alloc(first ? 0 : rows), tables, format, slice);
      if (input.slice === undefined || header.slice === null) continue;
      const { layerBegin, layerEnd } = input.slice;
      const sequence = header.slice.rows!.sequence;
      if (layerEnd > layerBegin) {
        expect(layerBegin).toBe(this.computed.get(sequence) ?? 0);
        this.computed.set(sequence, layerEnd);
      }
      if (layerEnd > layerBegin && layerEnd === layers.layerEnd && !isLast) {
        arriving = input.slice.rows.rowCount;
      }
    }
    expect(arriving).toBe(0);
  }
}
