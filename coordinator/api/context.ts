/** What every route needs. */
import type { FastifyReply, FastifyRequest } from "fastify";
import type { ErrorCode } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import type { BatchService } from "../batches/batch.js";
import type { WebhookHosts } from "../batches/webhook-hosts.js";
import type { FileStore } from "../files/store.js";
import type { InferenceService } from "../inference.js";
import type { WakeUps } from "../wake-ups.js";
import type { JsonSchema } from "./fields.js";
import type { RunningCalls } from "./follow.js";
import type { Timing } from "./limits.js";
import type { Metrics } from "./metrics.js";
import type { Answered } from "./request-log.js";

export interface ApiContext {
  service: InferenceService;
  metrics: Metrics;
  log: Logger;
  timing: Timing;
  running: RunningCalls;
  /** Calls whose head and body are there: thousands can come in one turn of the event loop. */
  arrivals: WakeUps;
  /** Null, as the next: a coordinator without --data. */
  files: FileStore | null;
  batches: BatchService | null;
  /** Where webhooks of batches may go. */
  webhookHosts: WebhookHosts;
  /** Each ends a stream that would go on for as long as its client listens; all are called at close. */
  streams: Set<() => void>;
}

export type Handler = (request: FastifyRequest, reply: FastifyReply) => unknown;

export interface Route {
  method: "GET" | "POST" | "DELETE";
  path: string;
  /** One line for /openapi.json. */
  summary: string;
  /** Asked every few seconds by machines: its responses are logged at debug level. */
  quiet?: boolean;
  /** Answered without a key, also where the API has keys: asked by probes and scrapers. */
  open?: boolean;
  /** Of the query and the head, as /openapi.json shows them. */
  parameters?: JsonSchema[];
  /** Its body is a form (multipart/form-data) of these fields; others are JSON. */
  form?: JsonSchema;
  handler: Handler;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Monotonic time at which the head of the request had arrived. */
    arrivedMs: number;
    /** Of a generation request, from its submission on. */
    answered: Answered | null;
    /** Set when the response is, or ends with, an error. */
    errorCode: ErrorCode | null;
  }
}
