/** The body of POST /v1/batches: its fields, and what becomes of them. */
import { RelayError } from "../../common/errors.js";
import { type BatchEndpoint, batchEndpoints, type NewBatch } from "../batches/batch.js";
import { type WebhookHosts, webhookUrlLengthMax } from "../batches/webhook-hosts.js";
import {
  asObject,
  type Body,
  type Field,
  type Fields,
  integerField,
  invalid,
  readFields,
  show,
} from "./fields.js";
import { maxIdLength } from "./limits.js";
import { unknownFields } from "./strict.js";

/** As at OpenAI. */
const metadataPairsMax = 16;
const metadataKeyLengthMax = 64;
const metadataValueLengthMax = 512;
const outputSecondsMin = 3_600;
const outputSecondsMax = 30 * 24 * 3_600;

const windowSecondsMax = 30 * 24 * 3_600;
const secondsPer: Record<string, number> = { s: 1, m: 60, h: 3_600, d: 24 * 3_600 };
const priorityMax = 100;

const inputFileField: Field<string> = {
  schema: { type: "string", minLength: 1, maxLength: maxIdLength },
  read(value, path) {
    const expected = "the id of a file of purpose batch";
    if (typeof value !== "string") throw invalid(path, value, expected);
    if (value === "" || value.length > maxIdLength) throw refused(path, show(value), expected);
    return value;
  },
};

const endpointField: Field<BatchEndpoint> = {
  schema: { type: "string", enum: batchEndpoints },
  read(value, path) {
    const found = batchEndpoints.find((known) => known === value);
    if (found !== undefined) return found;
    const expected = batchEndpoints.join(" or ");
    throw typeof value === "string" ? refused(path, show(value), expected) : invalid(path, value, expected);
  },
};

const windowField: Field<{ text: string; seconds: number }> = {
  schema: { type: "string", pattern: "^[1-9][0-9]*[smhd]$", examples: ["24h"] },
  read(value, path) {
    const expected = 'a time from 1s to 30d, such as "24h"';
    if (typeof value !== "string") throw invalid(path, value, expected);
    const [, count, unit] = /^([1-9][0-9]{0,8})([smhd])$/.exec(value) ?? [];
    const seconds = Number(count) * (secondsPer[unit ?? ""] ?? Number.NaN);
    if (!(seconds <= windowSecondsMax)) throw refused(path, show(value), expected);
    return { text: value, seconds };
  },
};

const metadataField: Field<Record<string, string> | null> = {
  schema: {
    type: ["object", "null"],
    maxProperties: metadataPairsMax,
    propertyNames: { maxLength: metadataKeyLengthMax },
    additionalProperties: { type: "string", maxLength: metadataValueLengthMax },
  },
  read(value, path) {
    if (value === undefined || value === null) return null;
    const pairs = Object.entries(asObject(value, path));
    if (pairs.length > metadataPairsMax) {
      throw refused(path, `${pairs.length} pairs`, `at most ${metadataPairsMax}`);
    }
    for (const [key, text] of pairs) {
      if (key.length > metadataKeyLengthMax) {
        throw refused(path, `a key of ${key.length} characters`, `at most ${metadataKeyLengthMax}`);
      }
      const at = `${path}[${JSON.stringify(key)}]`;
      const expected = `a string of at most ${metadataValueLengthMax} characters`;
      if (typeof text !== "string") throw invalid(at, text, expected);
      if (text.length > metadataValueLengthMax) {
        throw refused(at, `a string of ${text.length} characters`, expected);
      }
    }
    return Object.fromEntries(pairs) as Record<string, string>;
  },
};

const outputSeconds = integerField({ min: outputSecondsMin, max: outputSecondsMax });

const outputExpiryField: Field<number | null> = {
  schema: {
    type: ["object", "null"],
    required: ["anchor", "seconds"],
    properties: { anchor: { type: "string", enum: ["created_at"] }, seconds: outputSeconds.schema },
  },
  read(value, path) {
    if (value === undefined || value === null) return null;
    const { anchor, seconds } = asObject(value, path);
    if (anchor !== "created_at") {
      const at = `${path}.anchor`;
      throw typeof anchor === "string"
        ? refused(at, show(anchor), "created_at")
        : invalid(at, anchor, "created_at");
    }
    const read = outputSeconds.read(seconds, `${path}.seconds`);
    if (read === undefined) {
      throw invalid(`${path}.seconds`, seconds, `an integer from ${outputSecondsMin} to ${outputSecondsMax}`);
    }
    return read;
  },
};

const webhookField: Field<string | null> = {
  schema: {
    type: ["object", "null"],
    required: ["url"],
    properties: { url: { type: "string", format: "uri", maxLength: webhookUrlLengthMax } },
  },
  read(value, path) {
    if (value === undefined || value === null) return null;
    const { url } = asObject(value, path);
    if (typeof url !== "string") throw invalid(`${path}.url`, url, "an http or https URL");
    return url;
  },
};

export const batchFields = {
  input_file_id: inputFileField,
  endpoint: endpointField,
  completion_window: windowField,
  metadata: metadataField,
  output_expires_after: outputExpiryField,
  priority: integerField({ min: -priorityMax, max: priorityMax }),
  token_budget: integerField({ min: 1 }),
  webhook: webhookField,
} satisfies Fields;

const knownFields: ReadonlySet<string> = new Set(Object.keys(batchFields));

/**
 * @param hosts Where webhooks may go.
 * @param strict Unknown fields are errors.
 * @throws RelayError invalid_value naming the field
 */
export function readNewBatch(
  body: Body,
  hosts: WebhookHosts,
  strict: boolean,
): { batch: NewBatch; unknown: string[] } {
  const unknown = unknownFields(body, knownFields, strict);
  const values = readFields(batchFields, body);
  const url = values.webhook;
  const fault = url === null ? null : hosts.refuse(url);
  if (fault !== null)
    throw new RelayError("invalid_value", `webhook.url: ${fault}`, { param: "webhook.url" });
  return {
    unknown,
    batch: {
      inputFileId: values.input_file_id,
      endpoint: values.endpoint,
      completionWindow: values.completion_window.text,
      windowS: values.completion_window.seconds,
      metadata: values.metadata,
      outputExpiresAfterS: values.output_expires_after,
      priority: values.priority ?? 0,
      tokenBudget: values.token_budget ?? null,
      webhookUrl: url,
    },
  };
}

function refused(path: string, fault: string, expected: string): RelayError {
  return new RelayError("invalid_value", `${path}: ${fault}, expected ${expected}`, { param: path });
}
