/** One line of a batch's input, as the OpenAI batch API defines it. */
import { maxBodyBytes } from "../../common/limits.js";
import { showValue } from "../text.js";
import { decode, type Line } from "./lines.js";

/** The routes of the coordinator that a batch can ask. */
export const offeredUrls = ["/v1/chat/completions", "/v1/completions"] as const;

/** What stands around the body in a line. */
const envelopeBytesMax = 64 * 1024;
export const inputLineBytesMax = maxBodyBytes + envelopeBytesMax;
/** All custom_ids of a file are held in memory. */
export const customIdCharsMax = 512;

export interface BatchRequest {
  customId: string;
  url: (typeof offeredUrls)[number];
  /** JSON, ready to be sent. */
  body: string;
}

/** What is wrong with a line: field, value, expectation; file and number are added by whoever reads it. */
export class LineProblem extends Error {
  override readonly name = "LineProblem";
}

/** @throws LineProblem */
export function parseRequestLine(line: Line): BatchRequest {
  if (line.bytes === null) {
    throw new LineProblem(`the line is too long, expected at most ${inputLineBytesMax} bytes`);
  }
  const decoded = decode(line.bytes);
  if ("badByteAt" in decoded) {
    const byte = line.bytes[decoded.badByteAt]!.toString(16).padStart(2, "0");
    throw new LineProblem(`byte ${decoded.badByteAt + 1} is 0x${byte}, expected UTF-8`);
  }
  const value = parseJson(decoded.text);
  if (!isObject(value)) throw unexpected("the line", value, 'an object {"custom_id","method","url","body"}');
  const { custom_id, method, url, body } = value;
  if (typeof custom_id !== "string" || custom_id === "" || custom_id.length > customIdCharsMax) {
    throw unexpected("custom_id", custom_id, `a string of 1 to ${customIdCharsMax} characters`);
  }
  if (method !== "POST") throw unexpected("method", method, '"POST"');
  const offered = offeredUrls.find((each) => each === url);
  if (offered === undefined) throw unexpected("url", url, offeredUrls.map(showValue).join(" or "));
  if (!isObject(body)) throw unexpected("body", body, "an object: the body of the request");
  if (body.stream !== undefined && body.stream !== null && body.stream !== false) {
    throw unexpected("body.stream", body.stream, "false or none: the answers of a batch arrive whole");
  }
  return { customId: custom_id, url: offered, body: stringify(body) };
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function unexpected(field: string, value: unknown, expected: string): LineProblem {
  return new LineProblem(
    `${field}: ${value === undefined ? "missing" : showValue(value)}, expected ${expected}`,
  );
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new LineProblem(`not JSON (${(error as Error).message}), expected one object`);
  }
}

/** JSON.parse reads any depth, but writing recurses. */
function stringify(body: object): string {
  try {
    return JSON.stringify(body);
  } catch {
    throw new LineProblem("body: nested too deeply to be written again, expected a flat request body");
  }
}
