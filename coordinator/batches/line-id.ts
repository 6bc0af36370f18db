/** The id of a line in a batch's output and error file: the same in every run, and whoever has the input can tell it. */
import { createHash } from "node:crypto";

/** @param line Where the request stands in the input: from 1, blank lines counted. */
export function lineId(batchId: string, line: number): string {
  return `batch_req_${createHash("sha256").update(`${batchId}:${line}`).digest("hex").slice(0, 32)}`;
}
