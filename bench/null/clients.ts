/** The process of the clients: told by null/load.ts what to do. */
import { request } from "node:http";
import { exitWithParent } from "../../cli/parent.js";
import { percentile } from "../report.js";
import type { BurstReport, ClientCommand, ClientReport, StreamReport } from "./load.js";
import { StreamClient } from "./stream-client.js";

const clients: StreamClient[] = [];
let gapsMs: number[] = [];
let answersMs: number[] = [];
let tokens = 0;
let countedMs = performance.now();
let failure: string | null = null;
let seeds = 0;

const sink = {
  token(gapMs: number | null) {
    tokens++;
    if (gapMs !== null) gapsMs.push(gapMs);
  },
  answered: (ms: number) => void answersMs.push(ms),
  failed(why: string) {
    failure ??= why;
  },
};

function count(): StreamReport {
  const report: StreamReport = {
    failure,
    seconds: (performance.now() - countedMs) / 1_000,
    tokens,
    answers: answersMs.length,
    gapMs: {
      p50: gapsMs.length === 0 ? Number.NaN : percentile(gapsMs, 50),
      p99: gapsMs.length === 0 ? Number.NaN : percentile(gapsMs, 99),
    },
  };
  gapsMs = [];
  answersMs = [];
  tokens = 0;
  countedMs = performance.now();
  return report;
}

/** Each over a connection of its own, all at once. */
async function burst(command: Extract<ClientCommand, { kind: "burst" }>): Promise<BurstReport> {
  const { count: calls, host, port, promptTokens, tokens: wanted } = command;
  const statuses: Record<string, number> = {};
  const began = performance.now();
  await Promise.all(
    Array.from({ length: calls }, async (_, index) => {
      const prompt = Array.from(
        { length: promptTokens },
        (_, i) => 300 + ((index * 17 + i * (index % 97)) % 1_000),
      );
      const body = JSON.stringify({ prompt, max_tokens: wanted, ignore_eos: true });
      const status = await post(host, port, body);
      statuses[status] = (statuses[status] ?? 0) + 1;
    }),
  );
  return { seconds: (performance.now() - began) / 1_000, statuses };
}

/** @returns The status, or why there was none. */
function post(host: string, port: number, body: string): Promise<string> {
  return new Promise((resolve) => {
    const headers = { "content-type": "application/json", "content-length": body.length };
    const call = request(
      { host, port, path: "/v1/completions", method: "POST", headers, agent: false },
      (response) => {
        response.resume();
        response.on("end", () => resolve(String(response.statusCode)));
        response.on("error", (error) => resolve(error.message));
      },
    );
    call.on("error", (error) => resolve(error.message));
    call.end(body);
  });
}

async function obey(command: ClientCommand): Promise<ClientReport> {
  switch (command.kind) {
    case "start":
      while (clients.length < command.streams) clients.push(new StreamClient(command, () => ++seeds, sink));
      return count();
    case "count":
      return count();
    case "stop":
      for (const client of clients.splice(0)) client.leave();
      return count();
    case "burst":
      return burst(command);
  }
}

exitWithParent();
process.on("message", async (command: ClientCommand) => process.send!(await obey(command)));
// What listens to a channel keeps it open: the parent's end ends this process.
process.channel!.ref();
