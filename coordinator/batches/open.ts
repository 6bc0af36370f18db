/** Puts together what runs batches: the engine, its jobs in Redis, and the webhooks that tell of their ends. */
import type { Registry } from "prom-client";
import type { Logger } from "../../common/log.js";
import { defaultFilesDays, type OpenData } from "../files/open.js";
import type { BatchService, LineRunner } from "./batch.js";
import { BullmqJobs } from "./bullmq-jobs.js";
import { BatchEngine } from "./engine.js";
import { Webhooks } from "./webhook.js";
import { WebhookHosts } from "./webhook-hosts.js";
import { webhookKey } from "./webhook-secret.js";

const dayMs = 24 * 60 * 60 * 1_000;

export interface BatchesOptions {
  data: OpenData;
  redis: string;
  /** Namespace of this cluster's keys in Redis. */
  name: string;
  /** The served model. */
  model: string;
  term: number;
  /** Days that a batch is kept after its end, as files are; default defaultFilesDays. */
  filesDays?: number | undefined;
  /** Where webhooks may go; default: nowhere. */
  webhookHosts?: readonly string[] | undefined;
  /** Absent: one that is made under the data directory. */
  webhookSecretFile?: string | undefined;
  log: Logger;
  registry: Registry;
}

export interface Batches {
  service: BatchService;
  webhookHosts: WebhookHosts;
  /** Goes on with the batches that are there. */
  start(lines: LineRunner): void;
  /** Begins no more lines. */
  drain(): void;
  /** To be called when no line is being answered any more. */
  close(): Promise<void>;
}

/** @throws RelayError invalid_configuration for a webhook secret that cannot be used; what the disk says. */
export async function openBatches(options: BatchesOptions): Promise<Batches> {
  const { data, redis, name, model, term, log, registry } = options;
  const webhookHosts = new WebhookHosts(options.webhookHosts ?? []);
  const { path } = data.directory;
  // Nothing is signed where nothing may be sent: a data directory then holds no secret.
  const key = webhookHosts.none ? null : await webhookKey(options.webhookSecretFile ?? null, path);
  const engine = await BatchEngine.open({
    data: path,
    files: data.files,
    guard: data.guard,
    jobs: new BullmqJobs(redis, name, log),
    keepMs: (options.filesDays ?? defaultFilesDays) * dayMs,
    deliver: (delivery) => webhooks.deliver(delivery),
    model,
    term,
    log,
    registry,
  });
  const webhooks: Webhooks = new Webhooks({ hosts: webhookHosts, key, store: engine.deliveries, log });
  return {
    service: engine,
    webhookHosts,
    start: (lines) => {
      engine.start(lines);
      webhooks.start();
    },
    drain: () => engine.drain(),
    close: async () => {
      webhooks.close();
      await engine.close();
    },
  };
}
