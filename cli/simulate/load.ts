/** The load of a simulation, from flags or from the lines of a batch file. */
import type { Arrivals, Ask, LoadPart } from "../../simulation/hardware/load.js";
import { readLines } from "../batch/lines.js";
import { inputLineBytesMax, LineProblem, parseRequestLine } from "../batch/request-line.js";
import { CommandError } from "../errors.js";
import { clientsOf, requestsOf, type SimulateFlags } from "./flags.js";

/** No tokenizer is run: texts count by their size. Between English words and Chinese characters. */
export const bytesPerToken = 4;
/** What a line without max_tokens is taken to be answered with. */
const defaultReply = 256;
const linesMax = 50_000;

export async function loadOf(flags: SimulateFlags): Promise<LoadPart> {
  const arrivals: Arrivals =
    flags.rate === undefined
      ? { kind: "closed", clients: clientsOf(flags) }
      : { kind: "open", perSecond: flags.rate };
  const part = {
    arrivals,
    prompt: flags.promptTokens,
    reply: flags.replyTokens,
    interactiveShare: flags.class,
  };
  if (flags.input === undefined) return { ...part, requests: requestsOf(flags) };
  const asks = await readAsks(flags.input);
  return { ...part, asks, requests: asks.length };
}

/** @throws CommandError naming file and line. */
async function readAsks(file: string): Promise<Ask[]> {
  const asks: Ask[] = [];
  for await (const line of readLines(file, inputLineBytesMax)) {
    if (asks.length === linesMax) throw new CommandError(`${file} holds more than ${linesMax} requests`);
    try {
      asks.push(askOf(JSON.parse(parseRequestLine(line).body) as Record<string, unknown>));
    } catch (error) {
      if (!(error instanceof LineProblem)) throw error;
      throw new CommandError(`${file}:${line.number}: ${error.message}`);
    }
  }
  if (asks.length === 0) throw new CommandError(`${file} holds no requests`);
  return asks;
}

function askOf({ prompt, messages, max_tokens, max_completion_tokens }: Record<string, unknown>): Ask {
  const most = max_completion_tokens ?? max_tokens;
  return {
    promptTokens: Math.max(1, tokensOf(prompt ?? messages)),
    replyTokens: typeof most === "number" && most >= 1 ? Math.floor(most) : defaultReply,
    class: "batch",
  };
}

/** Ids are counted; of texts, wherever they stand, the bytes. */
function tokensOf(value: unknown): number {
  if (typeof value === "string") return Math.ceil(Buffer.byteLength(value) / bytesPerToken);
  if (typeof value === "number") return 1;
  if (typeof value !== "object" || value === null) return 0;
  return Object.values(value).reduce((sum: number, part: unknown) => sum + tokensOf(part), 0);
}
