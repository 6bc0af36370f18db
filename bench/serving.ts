/** Tokens per second of the demo model through a whole local cluster, for stages and concurrent requests. */
import { join } from "node:path";
import { LocalCluster } from "../cli/cluster.js";
import { silent } from "../cli/status-line.js";
import { packageRoot } from "../common/package.js";
import type { Table } from "./report.js";

const stageCounts = [1, 2, 4];
const concurrencies = [1, 8, 32];
const tokensPerRequest = 128;
/** Requests per measurement: enough for seconds, not for minutes. */
const requestCount = (concurrency: number): number => Math.max(4, 2 * concurrency);

export async function servingBench(): Promise<Table> {
  const rows: string[][] = [];
  for (const stages of stageCounts) {
    const model = join(packageRoot, "models/demo");
    const cluster = new LocalCluster({ model, stages, port: 0 }, silent);
    try {
      const url = await cluster.start();
      await run(url, 8, 8);
      const speeds: string[] = [];
      for (const concurrency of concurrencies) {
        speeds.push((await run(url, concurrency, requestCount(concurrency))).toFixed(0));
      }
      rows.push([String(stages), ...speeds]);
    } finally {
      await cluster.stop(true);
    }
  }
  return {
    title: `Demo model: tokens per second, ${tokensPerRequest} tokens per request`,
    head: ["stages", ...concurrencies.map((count) => `${count} requests`)],
    rows,
  };
}

/** @returns tokens per second over `count` requests, `concurrency` at a time. */
async function run(url: string, concurrency: number, count: number): Promise<number> {
  let next = 0;
  const client = async (): Promise<void> => {
    while (next < count) {
      const prompt = [10 + next++, 20, 30];
      const response = await fetch(`${url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ prompt, max_tokens: tokensPerRequest, ignore_eos: true, temperature: 0 }),
      });
      if (!response.ok) throw new Error(`status ${response.status}: ${await response.text()}`);
      await response.arrayBuffer();
    }
  };
  const started = performance.now();
  await Promise.all(Array.from({ length: concurrency }, client));
  return (count * tokensPerRequest * 1_000) / (performance.now() - started);
}
