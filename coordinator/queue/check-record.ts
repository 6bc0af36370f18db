/**
 * Ledger records on their way back. They were written by a process that is gone, perhaps by another release, and
 * lay in a store that others can reach: every field that is computed with is checked.
 */
import { RelayError } from "../../common/errors.js";
import type { GenerationRequest } from "../inference.js";
import { requestClasses } from "../request-class.js";
import { fromRecord, type RequestRecord } from "./record.js";

type Fields = Record<string, unknown>;

/**
 * @param text JSON of a RequestRecord.
 * @param tokenCount Ids from here on do not exist.
 * @throws RelayError invalid_value, naming the field; never with text of the record's prompt in it
 */
export function readRecord(text: string, tokenCount: number): GenerationRequest {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    // What the parser says repeats the text.
    throw new RelayError("invalid_value", `record: ${text.length} characters that are not JSON`);
  }
  const record = object(parsed, "record");
  string(record.id, "id");
  string(record.logId, "logId");
  if (record.endpoint !== "chat" && record.endpoint !== "completions") {
    throw bad("endpoint", record.endpoint, '"chat" or "completions"');
  }
  string(record.tenant, "tenant");
  if (!requestClasses.some((known) => known === record.class)) {
    throw bad("class", record.class, requestClasses.join(" or "));
  }
  if (record.deadlineMs !== undefined) finite(record.deadlineMs, "deadlineMs");
  checkSampling(object(record.sampling, "sampling"));
  checkText(object(record.text, "text"));
  checkAnswer(object(record.answer, "answer"));
  checkAccepted(object(record.accepted, "accepted"));
  const prompts = list(record.prompts, "prompts");
  for (const [i, prompt] of prompts.entries()) string(prompt, `prompts[${i}]`);
  const choices = list(record.choices, "choices");
  for (const [i, choice] of choices.entries()) {
    checkChoice(object(choice, `choices[${i}]`), `choices[${i}]`, prompts.length);
  }
  const request = decoded(record as unknown as RequestRecord);
  for (const [i, { promptTokens }] of request.choices.entries()) {
    const path = `choices[${i}]`;
    if (promptTokens.length === 0) throw bad(`${path}.prompt`, 0, "at least one token");
    for (const token of promptTokens) {
      if (token < 0 || token >= tokenCount) throw bad(`${path}.prompt`, token, `ids below ${tokenCount}`);
    }
    checkContext(record, i, promptTokens.length);
  }
  return request;
}

function decoded(record: RequestRecord): GenerationRequest {
  try {
    return fromRecord(record);
  } catch (cause) {
    throw new RelayError("invalid_value", "prompts: bytes that are no token ids, expected int32 in base64", {
      cause,
    });
  }
}

function checkSampling(sampling: Fields): void {
  for (const name of ["temperature", "topP", "minP"]) finite(sampling[name], `sampling.${name}`);
  for (const name of ["topK", "maxTokens", "minTokens"]) count(sampling[name], `sampling.${name}`, 0);
  count(sampling.topLogprobs, "sampling.topLogprobs", -1);
  for (const name of ["ignoreEos", "includeStopInOutput", "promptLogprobs"]) {
    boolean(sampling[name], `sampling.${name}`);
  }
  for (const [i, text] of list(sampling.stop, "sampling.stop", 0).entries()) {
    string(text, `sampling.stop[${i}]`);
  }
  for (const [i, id] of list(sampling.stopTokenIds, "sampling.stopTokenIds", 0).entries()) {
    count(id, `sampling.stopTokenIds[${i}]`, 0);
  }
}

function checkText(text: Fields): void {
  boolean(text.skipSpecialTokens, "text.skipSpecialTokens");
  boolean(text.chatReply, "text.chatReply");
}

function checkAnswer(answer: Fields): void {
  count(answer.n, "answer.n", 1);
  boolean(answer.asTokenIds, "answer.asTokenIds");
  object(answer.options, "answer.options");
}

function checkAccepted(accepted: Fields): void {
  count(accepted.term, "accepted.term", 0);
  finite(accepted.atMs, "accepted.atMs");
  string(accepted.numericsId, "accepted.numericsId", 0);
  count(accepted.recoveries, "accepted.recoveries", 0);
  count(accepted.tokens, "accepted.tokens", 0);
}

function checkChoice(choice: Fields, path: string, promptCount: number): void {
  count(choice.prompt, `${path}.prompt`, 0);
  if ((choice.prompt as number) >= promptCount) {
    throw bad(`${path}.prompt`, choice.prompt, `less than the ${promptCount} prompts`);
  }
  if (typeof choice.seed !== "string" || !/^-?\d{1,19}$/.test(choice.seed)) {
    throw bad(`${path}.seed`, choice.seed, "an int64 in decimal digits");
  }
}

function checkContext({ choices }: Fields, choice: number, promptLength: number): void {
  const path = `choices[${choice}].context`;
  const { context } = (choices as Fields[])[choice]!;
  if (context === undefined) return;
  const { length, mask, constantPosition, remainingMasks } = object(context, path);
  const within = (value: unknown, name: string, least: number, end: number) => {
    count(value, `${path}.${name}`, least);
    if ((value as number) >= end) throw bad(`${path}.${name}`, value, `less than ${end}`);
  };
  within(length, "length", 0, promptLength);
  within(mask, "mask", -1, promptLength);
  boolean(constantPosition, `${path}.constantPosition`);
  for (const [i, at] of list(remainingMasks, `${path}.remainingMasks`, 0).entries()) {
    within(at, `remainingMasks[${i}]`, 0, promptLength);
  }
}

function object(value: unknown, path: string): Fields {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Fields;
  throw bad(path, value, "an object");
}

function list(value: unknown, path: string, least = 1): unknown[] {
  if (Array.isArray(value) && value.length >= least) return value;
  throw bad(path, value, least === 0 ? "a list" : "a list that is not empty");
}

function string(value: unknown, path: string, least = 1): void {
  if (typeof value === "string" && value.length >= least) return;
  throw bad(path, value, least === 0 ? "a string" : "a string that is not empty");
}

function boolean(value: unknown, path: string): void {
  if (typeof value !== "boolean") throw bad(path, value, "true or false");
}

function finite(value: unknown, path: string): void {
  if (!Number.isFinite(value)) throw bad(path, value, "a number");
}

function count(value: unknown, path: string, least: number): void {
  if (!Number.isSafeInteger(value) || (value as number) < least) {
    throw bad(path, value, `an integer of ${least} or more`);
  }
}

/** Texts may be a client's: only their kind is told. */
function bad(path: string, value: unknown, expected: string): RelayError {
  const isPlain = typeof value === "number" || typeof value === "boolean" || value === null;
  const found = value === undefined ? "missing" : isPlain ? String(value) : kindOf(value);
  return new RelayError("invalid_value", `${path}: ${found}, expected ${expected}`);
}

function kindOf(value: unknown): string {
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}
