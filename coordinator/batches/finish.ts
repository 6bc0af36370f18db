/** The end of a batch: its output and error file. Whenever this is cut off it is begun anew, and makes the same files once. */
import type { Logger } from "../../common/log.js";
import { newFileId } from "../files/file.js";
import type { FileStore } from "../files/store.js";
import type { LineErrorCode } from "./batch.js";
import type { BatchStore } from "./batch-store.js";
import type { BatchThread } from "./batch-thread.js";
import type { LiveBatch } from "./live-batch.js";
import type { MergeTask } from "./merge.js";
import { usageObject } from "./record.js";
import type { BatchEnd } from "./states.js";

export interface PlannedFiles {
  output: string;
  error: string;
}

/** Why lines without an answer have none; a batch that is completed has them when its budget was spent. */
const unanswered: Record<BatchEnd, { code: LineErrorCode; message: string }> = {
  completed: {
    code: "token_budget_exceeded",
    message: "the batch had used its token budget before this request began",
  },
  expired: {
    code: "batch_expired",
    message: "the completion window of the batch was over before this request was answered",
  },
  cancelled: {
    code: "batch_cancelled",
    message: "the batch was cancelled before this request was answered",
  },
};

export class Finisher {
  constructor(
    private readonly store: BatchStore,
    private readonly files: FileStore,
    private readonly thread: BatchThread,
    private readonly log: Logger,
  ) {}

  /** The ids of the files, to be written down before they are made. */
  plan({ record }: LiveBatch): PlannedFiles {
    record.files ??= { output: newFileId(), error: newFileId() };
    return record.files;
  }

  /**
   * Makes those of the files that hold a line, and says so in the batch's object. Does nothing for those that are
   * there.
   * @throws RelayError storage_full; what the operating system says.
   */
  async makeFiles(batch: LiveBatch, planned: PlannedFiles): Promise<void> {
    const { object, record } = batch;
    const { total } = object.request_counts;
    if (total === 0 || record.end === null) return;
    const paths = this.store.paths(batch.id);
    const { paths: ledgers } = await this.store.ledgers(batch.id);
    const task: MergeTask = {
      batchId: batch.id,
      total,
      ledgers,
      prepared: paths.prepared,
      output: paths.output,
      error: paths.error,
      unanswered: unanswered[record.end],
    };
    const merged = await this.thread.run("merge", task);
    const adopt = async (id: string, path: string, lines: number, kind: string) => {
      if (lines === 0) return null;
      const file = await this.files.adopt(id, path, {
        filename: `${batch.id}_${kind}.jsonl`,
        purpose: "batch_output",
        tenant: record.tenant,
        expiresAfterS: record.outputExpiresAfterS,
      });
      return file.id;
    };
    object.output_file_id = await adopt(planned.output, paths.output, merged.outputLines, "output");
    object.error_file_id = await adopt(planned.error, paths.error, merged.errorLines, "error");
    const { completed } = merged;
    // What a batch that is complete has not answered has failed; what others have not was never tried.
    const failed = record.end === "completed" ? total - completed : merged.failed;
    object.request_counts = { total, completed, failed };
    object.usage = usageObject(merged.usage);
    this.log.info({ batchId: batch.id, total, completed, failed }, "the files of a batch are there");
  }
}
