/** Answers the lines of one job that are not answered yet, as far as the window lets them in. */
import { setTimeout as sleep } from "node:timers/promises";
import { RelayError, toRelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import type { Room } from "../room.js";
import type { LineAnswer, LineRunner } from "./batch.js";
import { mostTokens } from "./budget.js";
import { formatRecord, type LedgerRecord } from "./ledger-record.js";
import { maxRecordBytes, retryMs } from "./limits.js";
import { lineId } from "./line-id.js";
import type { LiveBatch } from "./live-batch.js";
import { answeredLine } from "./output-line.js";
import { type JobCut, type PreparedLine, readPrepared } from "./prepared.js";

export interface JobPorts {
  runner: LineRunner;
  /** Lines, and the bytes of their bodies. */
  window: Room;
  /** Resolves when the record counts. @throws RelayError draining when it will not. */
  append(batch: LiveBatch, record: Buffer): Promise<void>;
  /** An answer counts; called before the next line begins. */
  answered(batch: LiveBatch, record: LedgerRecord): void;
  /** Fires when this process begins no more lines. */
  draining: AbortSignal;
  log: Logger;
}

/**
 * Resolves when no line of the job is under way any more: all are answered, the batch takes no more, or the process
 * drains. What is open then is for another run.
 * @throws what the operating system says when the input cannot be read.
 */
export async function runJob(batch: LiveBatch, path: string, job: JobCut, ports: JobPorts): Promise<void> {
  const underWay = new Set<Promise<void>>();
  try {
    for await (const line of readPrepared(path, job)) {
      if (!mayBegin(batch, line.number, ports)) continue;
      // Before it takes a place that a line of another batch could have.
      const most = batch.budget.bounded ? mostTokens(line.body, ports.runner.contextLength) : 0;
      const reserved = await batch.budget.reserve(most);
      const bytes = line.body.length;
      await ports.window.enter(1, bytes);
      const leave = () => {
        ports.window.leave(1, bytes);
        batch.budget.giveBack(reserved);
      };
      // While it waited another job may have answered it, or the batch may have ended.
      if (!mayBegin(batch, line.number, ports)) {
        leave();
        continue;
      }
      batch.underWay++;
      const run = runLine(batch, line, ports).finally(() => {
        batch.underWay--;
        leave();
        underWay.delete(run);
      });
      underWay.add(run);
    }
  } finally {
    await Promise.all(underWay);
  }
}

function mayBegin(batch: LiveBatch, line: number, { draining }: JobPorts): boolean {
  return batch.takesLines && batch.isOpen(line) && !draining.aborted;
}

/** Never rejects: a line that is not answered stays open. */
async function runLine(batch: LiveBatch, line: PreparedLine, ports: JobPorts): Promise<void> {
  try {
    const answer = await answerOf(batch, line, ports);
    if (answer === null) return;
    const { record, bytes } = recordOf(batch, line, answer);
    await ports.append(batch, bytes);
    ports.answered(batch, record);
  } catch (error) {
    if (error instanceof RelayError && error.code === "draining") return;
    ports.log.error(
      { batchId: batch.id, line: line.inputLine, err: error },
      "a line of a batch could not be answered",
    );
  }
}

/** What stands in the ledger. Of an answer that no reader would take, an error: it would be run again for ever. */
function recordOf(
  batch: LiveBatch,
  line: PreparedLine,
  answer: LineAnswer,
): { record: LedgerRecord; bytes: Buffer } {
  const record = { line: line.number, ok: answer.status < 400, usage: answer.usage };
  const bytes = formatRecord(record, answeredLine(batch.id, line, answer));
  if (bytes.length <= maxRecordBytes) return { record, bytes };
  const { requestId, usage } = answer;
  const problem = new RelayError("not_supported", `the answer is longer than ${maxRecordBytes} bytes`);
  const body = JSON.stringify({
    error: { message: problem.message, type: problem.type, param: null, code: problem.code },
  });
  return recordOf(batch, line, { status: problem.httpStatus, requestId, body, usage });
}

/** Null when the batch or this process ends before. */
async function answerOf(batch: LiveBatch, line: PreparedLine, ports: JobPorts): Promise<LineAnswer | null> {
  const { tenant, object } = batch.record;
  const name = {
    requestId: lineId(batch.id, line.inputLine),
    batchId: batch.id,
    customId: JSON.parse(line.customId) as string,
    tenant,
  };
  // Until the batch ends, at the latest when its window is over.
  for (let pauseMs: number = retryMs.first; ; pauseMs = Math.min(2 * pauseMs, retryMs.most)) {
    try {
      return await ports.runner.run(object.endpoint, line.body, name, batch.signal);
    } catch (cause) {
      if (batch.signal.aborted) return null;
      const error = toRelayError(cause);
      if (error.code === "draining" || ports.draining.aborted) return null;
      if (!error.retryable) throw cause;
      ports.log.debug(
        { requestId: name.requestId, code: error.code, pauseMs },
        "a line of a batch is tried again",
      );
      await sleep(pauseMs, undefined, { signal: AbortSignal.any([batch.signal, ports.draining]) }).catch(
        () => undefined,
      );
      if (batch.signal.aborted || ports.draining.aborted) return null;
    }
  }
}
