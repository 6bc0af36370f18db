/** One line of a batch's output or error file, as the OpenAI batch API defines it. */
import type { LineAnswer } from "./batch.js";
import { lineId } from "./line-id.js";
import type { LineName } from "./prepared.js";

/** @returns JSON without a newline. */
export function answeredLine(batchId: string, { inputLine, customId }: LineName, answer: LineAnswer): string {
  const { status, requestId, body } = answer;
  return (
    `{"id":"${lineId(batchId, inputLine)}","custom_id":${customId},` +
    `"response":{"status_code":${status},"request_id":${JSON.stringify(requestId)},"body":${body}},"error":null}`
  );
}

/** Of a line that has no answer, with its newline. */
export function unansweredLine(
  batchId: string,
  { inputLine, customId }: LineName,
  { code, message }: { code: string; message: string },
): Buffer {
  const error = JSON.stringify({ code, message });
  const id = lineId(batchId, inputLine);
  return Buffer.from(`{"id":"${id}","custom_id":${customId},"response":null,"error":${error}}\n`);
}
