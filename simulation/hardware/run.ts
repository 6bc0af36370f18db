/** The stages of one plan of one pipeline, as its workers were told, and the steps that travel through them. */
import type { PipelineId } from "../../common/ids.js";
import type { LayerRange } from "../../coordinator/placement/cut.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepWork } from "./step-work.js";
import type { StageTimer } from "./timing.js";
import type { SimulatedWorker } from "./worker.js";

export interface RunStage {
  worker: SimulatedWorker;
  layers: LayerRange;
  timer: StageTimer;
}

export interface PipelineRun {
  readonly pipeline: PipelineId;
  readonly epoch: { term: number; plan: number };
  /** Filled as the workers are assigned. */
  readonly stages: RunStage[];
  /** Its plan is over: what still travels is dropped. */
  over: boolean;
}

/** A step on its way. */
export interface Travel {
  readonly run: PipelineRun;
  readonly header: StepHeader;
  readonly work: StepWork;
  readonly rows: RowKinds;
  readonly stageUs: number[];
  readonly sentMs: number;
}

export interface RowKinds {
  decodeRows: number;
  prefillRows: number;
  replayRows: number;
}

/**
 * How far sequences were ever computed: rows below that are built again, after a loss or a preemption. One entry per
 * sequence of the simulation.
 */
export class ComputedLengths {
  readonly #lengths = new Map<number, number>();

  /** Counts the rows of a header, and remembers them. */
  note({ sequences = [], slice }: StepHeader): RowKinds {
    const kinds: RowKinds = { decodeRows: 0, prefillRows: 0, replayRows: 0 };
    const context = slice?.rows;
    if (context != null) {
      const again = (this.#lengths.get(context.sequence ?? 0) ?? 0) > 0;
      kinds[again ? "replayRows" : "prefillRows"] += context.rowCount ?? 0;
    }
    for (const { sequence = 0, validLength = 0, rowCount = 0, draftRows = 0, sampling } of sequences) {
      const known = this.#lengths.get(sequence) ?? 0;
      const end = validLength + rowCount - draftRows;
      const again = Math.max(0, Math.min(known, end) - validLength);
      const fresh = rowCount - again;
      kinds.replayRows += again;
      if (sampling != null && validLength > 0 && rowCount - draftRows === 1) kinds.decodeRows += fresh;
      else kinds.prefillRows += fresh;
      this.#lengths.set(sequence, Math.max(known, end));
    }
    return kinds;
  }
}
