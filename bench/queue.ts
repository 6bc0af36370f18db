/** From submitting a request to its admission: one BullMQ round trip with the ledger write, on a private Redis. */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { findRedisServer, freePort, probeRedis, redisArguments } from "../cli/redis.js";
import { requestId } from "../common/ids.js";
import { createLogger } from "../common/log.js";
import type { GenerationRequest } from "../coordinator/inference.js";
import { BullmqQueue } from "../coordinator/queue/bullmq-queue.js";
import { defaultTenant } from "../coordinator/request-class.js";
import { percentile, type Table } from "./report.js";

const warmUpRounds = 50;
const rounds = 1_000;
const promptTokens = 100;

export async function queueBench(): Promise<Table> {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-bench-"));
  const port = await freePort();
  const redis = spawn(findRedisServer(), redisArguments(port, directory), { stdio: "ignore" });
  try {
    while (!(await probeRedis(port, redis.pid!))) await sleep(50);
    const queue = await BullmqQueue.open(`redis://127.0.0.1:${port}`, "bench", createLogger("bench"));
    let admitted: () => void = () => {};
    await queue.start(() => admitted());
    const times: number[] = [];
    for (let round = -warmUpRounds; round < rounds; round++) {
      const arrived = new Promise<void>((resolve) => {
        admitted = resolve;
      });
      const submitted = performance.now();
      await queue.add(request(round));
      await arrived;
      if (round >= 0) times.push(performance.now() - submitted);
      queue.ledger.ended(requestId(`bench-${round}`));
    }
    await queue.close();
    return {
      title: "One request through BullMQ: submitted to admitted, ledger written (ms)",
      head: ["median", "p99"],
      rows: [[percentile(times, 50).toFixed(2), percentile(times, 99).toFixed(2)]],
    };
  } finally {
    redis.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
  }
}

function request(round: number): GenerationRequest {
  return {
    id: requestId(`bench-${round}`),
    logId: `bench-${round}`,
    endpoint: "completions",
    tenant: defaultTenant,
    class: "interactive",
    choices: [{ promptTokens: Array.from({ length: promptTokens }, (_, index) => index), seed: "1" }],
    sampling: {
      temperature: 0,
      topP: 1,
      topK: 0,
      minP: 0,
      maxTokens: 16,
      minTokens: 0,
      ignoreEos: false,
      stop: [],
      stopTokenIds: [],
      includeStopInOutput: false,
      topLogprobs: -1,
      promptLogprobs: false,
    },
    text: { skipSpecialTokens: true, chatReply: false },
  };
}
