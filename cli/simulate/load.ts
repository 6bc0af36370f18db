/** The load of a simulation, from flags or from the lines of a batch file. */
import { createReadStream } from "node:fs";
import { maxLineBytes, maxLines } from "../../coordinator/batches/limits.js";
import { LineSplitter } from "../../coordinator/batches/line-splitter.js";
import { isObject } from "../../coordinator/batches/request-line.js";
import type { Arrivals, Length, LoadPart } from "../../simulation/hardware/load.js";
import { CommandError } from "../errors.js";
import { clientsOf, requestsOf, type SimulateFlags } from "./flags.js";

/** No tokenizer is run: texts count by their size. Between English words and Chinese characters. */
export const bytesPerToken = 4;
const defaultPrompt: Length = { kind: "fixed", tokens: 512 };

export async function loadOf(flags: SimulateFlags): Promise<LoadPart> {
  const arrivals: Arrivals =
    flags.rate === undefined
      ? { kind: "closed", clients: clientsOf(flags) }
      : { kind: "open", perSecond: flags.rate };
  const part = {
    arrivals,
    prompt: flags.promptTokens ?? defaultPrompt,
    reply: flags.replyTokens,
    // The lines of a file are a batch.
    interactiveShare: flags.class ?? (flags.input === undefined ? 1 : 0),
  };
  if (flags.input === undefined) return { ...part, requests: requestsOf(flags) };
  const sizes = await readSizes(flags.input);
  return { ...part, sizes, requests: sizes.length };
}

type Sizes = NonNullable<LoadPart["sizes"]>[number];

/** @throws CommandError naming file and line. */
async function readSizes(file: string): Promise<Sizes[]> {
  const sizes: Sizes[] = [];
  const splitter = new LineSplitter(maxLineBytes, ({ number, bytes }) => {
    if (sizes.length === maxLines) throw new CommandError(`${file} holds more than ${maxLines} requests`);
    const body = bytes === null ? null : bodyOf(bytes);
    if (body === null) {
      throw new CommandError(
        `${file}:${number}: expected {"custom_id","method","url","body"} in at most ${maxLineBytes} bytes`,
      );
    }
    sizes.push(sizeOf(body));
  });
  try {
    for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) splitter.push(chunk);
  } catch (error) {
    if (error instanceof CommandError) throw error;
    throw new CommandError(`cannot read ${file}: ${(error as Error).message}`);
  }
  splitter.end();
  if (sizes.length === 0) throw new CommandError(`${file} holds no requests`);
  return sizes;
}

/** Null for what is no line of a batch. */
function bodyOf(line: Buffer): Record<string, unknown> | null {
  try {
    const { body } = JSON.parse(line.toString("utf8")) as { body?: unknown };
    return isObject(body) ? body : null;
  } catch {
    return null;
  }
}

function sizeOf({ prompt, messages, max_tokens, max_completion_tokens }: Record<string, unknown>): Sizes {
  const most = max_completion_tokens ?? max_tokens;
  return {
    promptTokens: Math.max(1, tokensOf(prompt ?? messages)),
    replyTokens: typeof most === "number" && most >= 1 ? Math.floor(most) : null,
  };
}

/** Ids are counted; of texts, wherever they stand, the bytes. */
function tokensOf(value: unknown): number {
  if (typeof value === "string") return Math.ceil(Buffer.byteLength(value) / bytesPerToken);
  if (typeof value === "number") return 1;
  if (typeof value !== "object" || value === null) return 0;
  return Object.values(value).reduce((sum: number, part: unknown) => sum + tokensOf(part), 0);
}
