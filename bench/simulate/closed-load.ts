/** Clients that each ask again when they are answered, as simulated ones do, against a real API. */

import { CommandError } from "../../cli/errors.js";
import { readServerSentEvents } from "../../cli/sse.js";
import { percentile } from "../report.js";
import type { CompletionChunk } from "../up.js";

export interface ClosedLoad {
  clients: number;
  requests: number;
  promptTokens: number;
  replyTokens: number;
}

/** Times in ms; the rate while all clients are busy. */
export interface LoadFigures {
  tokensPerSecond: number;
  ttftMs: number;
  itlMs: number;
}

/** Ids of prompts: ordinary text in every tokenizer. */
const firstId = 300;
const idCount = 1_000;

/** Prompts differ in all loads of this process: nothing of them is in a cache. */
let prompts = 0;

/** @throws CommandError when a request fails. */
export async function runClosedLoad(url: string, load: ClosedLoad): Promise<LoadFigures> {
  const firsts: number[] = [];
  const gaps: number[] = [];
  const arrivals: number[] = [];
  const waiting = new Set<number>();
  let fromMs: number | null = null;
  let toMs: number | null = null;
  let sent = 0;
  const ask = async (number: number): Promise<void> => {
    waiting.add(number);
    const sentMs = performance.now();
    let lastMs: number | null = null;
    for await (const count of tokensOf(url, load, ++prompts)) {
      const now = performance.now();
      for (let token = 0; token < count; token++) {
        arrivals.push(now);
        if (lastMs !== null) gaps.push(now - lastMs);
        else firsts.push(now - sentMs);
        lastMs = now;
      }
      waiting.delete(number);
      if (waiting.size === 0 && sent >= load.clients) fromMs ??= now;
    }
    fromMs ??= performance.now();
  };
  const client = async () => {
    while (sent < load.requests) await ask(++sent);
    toMs ??= performance.now();
  };
  await Promise.all(Array.from({ length: load.clients }, client));
  if (fromMs === null || toMs === null)
    throw new CommandError("the load never was full: more requests are needed");
  const [from, to]: [number, number] = [fromMs, toMs];
  const count = arrivals.filter((at) => at > from && at <= to).length;
  return {
    tokensPerSecond: (count * 1_000) / (to - from),
    ttftMs: percentile(firsts, 50),
    itlMs: percentile(gaps, 50),
  };
}

/** How many tokens came with each event. */
async function* tokensOf(url: string, load: ClosedLoad, number: number): AsyncGenerator<number> {
  const { promptTokens, replyTokens } = load;
  const prompt = Array.from(
    { length: promptTokens },
    (_, i) => firstId + ((number * 31 + i * ((number % 89) + 1)) % idCount),
  );
  const body = { prompt, max_tokens: replyTokens, ignore_eos: true, stream: true, return_token_ids: true };
  const response = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, temperature: 0 }),
  });
  if (!response.ok) throw new CommandError(`status ${response.status}: ${await response.text()}`);
  for await (const data of readServerSentEvents(response.body!)) {
    if (data === "[DONE]") return;
    const { choices } = JSON.parse(data) as CompletionChunk;
    yield choices?.[0]?.token_ids?.length ?? 0;
  }
  throw new CommandError("an answer broke off");
}
