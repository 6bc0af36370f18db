/**
 * The input file of a batch. It is read twice: once to find everything that is wrong with it, before
 * anything is sent, and once to send it. In between only the custom_ids are held.
 */
import { CommandError } from "../errors.js";
import { formatCount, showValue } from "../text.js";
import { readLines } from "./lines.js";
import { type BatchRequest, inputLineBytesMax, LineProblem, parseRequestLine } from "./request-line.js";

/** Requests of one file, as at OpenAI. */
export const requestsMax = 50_000;
/** Problems that are told one by one. */
export const problemsShownMax = 20;

export interface CheckedInput {
  /** The line of each custom_id, in the order of the file. */
  lineOf: ReadonlyMap<string, number>;
  /** "FILE:LINE: what is wrong", the first problemsShownMax of them. */
  problems: string[];
  problemCount: number;
}

/** @throws CommandError when the file cannot be read, is empty, or holds more than requestsMax lines. */
export async function checkInput(file: string): Promise<CheckedInput> {
  const lineOf = new Map<string, number>();
  const problems: string[] = [];
  let problemCount = 0;
  for await (const line of readLines(file, inputLineBytesMax)) {
    if (lineOf.size + problemCount === requestsMax) {
      throw new CommandError(
        `${file} holds more than ${formatCount(requestsMax)} requests: cut it into several files`,
      );
    }
    try {
      const { customId } = parseRequestLine(line);
      const earlier = lineOf.get(customId);
      if (earlier !== undefined) {
        throw new LineProblem(
          `custom_id: ${showValue(customId)} stands in line ${earlier} already, expected one of its own`,
        );
      }
      lineOf.set(customId, line.number);
    } catch (error) {
      if (!(error instanceof LineProblem)) throw error;
      if (problemCount < problemsShownMax) problems.push(`${file}:${line.number}: ${error.message}`);
      problemCount += 1;
    }
  }
  if (lineOf.size + problemCount === 0) throw new CommandError(`${file} holds no requests`);
  return { lineOf, problems, problemCount };
}

/**
 * The requests of a checked file, in its order.
 * @param lineOf What the check found.
 * @throws CommandError when the file is no longer what was checked.
 */
export async function* readRequests(
  file: string,
  lineOf: ReadonlyMap<string, number>,
): AsyncGenerator<BatchRequest> {
  const changed = () => new CommandError(`${file} was changed while it was being sent: run it again`);
  let count = 0;
  for await (const line of readLines(file, inputLineBytesMax)) {
    let request: BatchRequest;
    try {
      request = parseRequestLine(line);
    } catch (error) {
      throw error instanceof LineProblem ? changed() : error;
    }
    if (lineOf.get(request.customId) !== line.number) throw changed();
    count += 1;
    yield request;
  }
  if (count !== lineOf.size) throw changed();
}
