/** `Idempotency-Key`: by it a client says that a request is one that it may have sent before. */
import { createHash } from "node:crypto";
import { RelayError } from "../../common/errors.js";
import type { CreationName, NewBatch } from "../batches/batch.js";
import { type JsonSchema, show } from "./fields.js";

export const maxIdempotencyKeyLength = 255;
const keyPattern = "^[!-~]+$";

export const idempotencyParameter: JsonSchema = {
  name: "Idempotency-Key",
  in: "header",
  required: false,
  description: "The same key with the same body gives the batch that the first of them made.",
  schema: { type: "string", minLength: 1, maxLength: maxIdempotencyKeyLength, pattern: keyPattern },
};

/**
 * @param key What the header says; undefined: it was not sent.
 * @param batch What is asked for; a body that says the same in another order asks for the same.
 * @throws RelayError invalid_value naming the header
 */
export function readCreationName(key: string | string[] | undefined, batch: NewBatch): CreationName | null {
  if (key === undefined) return null;
  const text = String(key);
  if (text.length > maxIdempotencyKeyLength || !new RegExp(keyPattern).test(text)) {
    const expected = `1 to ${maxIdempotencyKeyLength} printable characters of ASCII without spaces`;
    const message = `idempotency-key: ${show(text)} is not valid, expected ${expected}`;
    throw new RelayError("invalid_value", message, { param: "idempotency-key" });
  }
  const metadata =
    batch.metadata === null ? null : Object.entries(batch.metadata).sort(([a], [b]) => (a < b ? -1 : 1));
  const asked = JSON.stringify({ ...batch, metadata });
  return { key: text, request: createHash("sha256").update(asked).digest("hex") };
}
