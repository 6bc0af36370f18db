/** One line of a batch's input, as the OpenAI batch API defines it. */
import { maxBodyBytes } from "../../common/limits.js";
import type { BatchEndpoint, BatchProblem, BatchProblemCode } from "./batch.js";
import { maxCustomIdLength, maxLineBytes } from "./limits.js";
import type { Line } from "./line-splitter.js";

export interface RequestLine {
  customId: string;
  /** JSON: the body of its request. */
  body: string;
}

/** What every line of a batch has to say. */
export interface LineRules {
  endpoint: BatchEndpoint;
  /** Of the served model. */
  model: string;
}

/** What is wrong with a line: field, value, expectation. */
export class LineProblem extends Error {
  override readonly name = "LineProblem";
  readonly code: BatchProblemCode;
  readonly param: string | null;

  constructor(code: BatchProblemCode, param: string | null, message: string) {
    super(message);
    this.code = code;
    this.param = param;
  }

  at(line: number | null): BatchProblem {
    return { code: this.code, line, message: this.message, param: this.param };
  }
}

/** Characters of a client's value that a message repeats. */
const maxShown = 60;

/** @throws LineProblem */
export function parseRequestLine({ bytes }: Line, rules: LineRules): RequestLine {
  if (bytes === null) {
    throw new LineProblem("line_too_long", null, `the line is longer than ${maxLineBytes} bytes`);
  }
  const value = parseJson(decode(bytes));
  if (!isObject(value)) {
    const message = `the line is ${show(value)}, expected an object {"custom_id","method","url","body"}`;
    throw new LineProblem("invalid_json_line", null, message);
  }
  const { custom_id: customId, method, url, body } = value;
  if (typeof customId !== "string" || customId === "" || customId.length > maxCustomIdLength) {
    throw unexpected("custom_id", customId, `a string of 1 to ${maxCustomIdLength} characters`);
  }
  if (method !== "POST") throw unexpected("method", method, '"POST"');
  if (url === undefined) throw unexpected("url", url, show(rules.endpoint));
  if (url !== rules.endpoint) {
    const message = `url: ${show(url)}, expected ${show(rules.endpoint)}: the endpoint of the batch`;
    throw new LineProblem("mismatched_endpoint", "url", message);
  }
  if (!isObject(body)) throw unexpected("body", body, "an object: the body of the request");
  checkModel(body.model, rules.model);
  if (body.stream !== undefined && body.stream !== null && body.stream !== false) {
    throw unexpected("body.stream", body.stream, "false or none: the answers of a batch come whole");
  }
  return { customId, body: stringify(body) };
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** A value from a client's file, short enough for a message. */
export function show(value: unknown): string {
  if (Array.isArray(value)) return "[...]";
  if (typeof value === "object" && value !== null) return "{...}";
  if (typeof value !== "string") return String(value);
  if (value.length <= maxShown) return JSON.stringify(value);
  return `${JSON.stringify(value.slice(0, maxShown))}...`;
}

function checkModel(model: unknown, served: string): void {
  if (model === undefined || model === null || model === "default" || model === served) return;
  const message = `body.model: ${show(model)}, expected ${show(served)}, "default" or none: it is the one that is served`;
  throw new LineProblem("mismatched_model", "body.model", message);
}

function unexpected(field: string, value: unknown, expected: string): LineProblem {
  const isMissing = value === undefined;
  const code = isMissing ? "missing_required_parameter" : "invalid_value";
  return new LineProblem(
    code,
    field,
    `${field}: ${isMissing ? "missing" : show(value)}, expected ${expected}`,
  );
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decode(bytes: Buffer): string {
  try {
    return decoder.decode(bytes);
  } catch {
    // Replacing what is bad and encoding again gives other bytes from the first bad one on.
    const again = Buffer.from(bytes.toString("utf8"));
    let at = 0;
    while (at < bytes.length && bytes[at] === again[at]) at++;
    const byte = (bytes[at] ?? 0).toString(16).padStart(2, "0");
    throw new LineProblem("invalid_encoding", null, `byte ${at + 1} is 0x${byte}, expected UTF-8`);
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const message = `not JSON (${(error as Error).message.slice(0, 4 * maxShown)}), expected one object`;
    throw new LineProblem("invalid_json_line", null, message);
  }
}

/** JSON.parse reads any depth, but writing recurses. */
function stringify(body: object): string {
  let text: string;
  try {
    text = JSON.stringify(body);
  } catch {
    const message = "body: nested too deeply to be written again, expected a flat request body";
    throw new LineProblem("invalid_value", "body", message);
  }
  if (Buffer.byteLength(text) <= maxBodyBytes) return text;
  throw new LineProblem("line_too_long", "body", `body: longer than ${maxBodyBytes} bytes`);
}
