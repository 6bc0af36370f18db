/** The ids of a batch's answers: the same in every run, and from the place of the line in the input alone. */
import { createHash } from "node:crypto";

/**
 * The `id` of the line of the output, or of the errors, that answers a line of the input. It stands first in it.
 * @param line From 1, blank lines counted.
 */
export function lineId(batchId: string, line: number): string {
  return `batch_req_${createHash("sha256").update(`${batchId}:${line}`).digest("hex").slice(0, 32)}`;
}
