/** What every route needs. */
import type { FastifyReply, FastifyRequest } from "fastify";
import type { Logger } from "../../common/log.js";
import type { InferenceService } from "../inference.js";
import type { Timing } from "./limits.js";
import type { Metrics } from "./metrics.js";

export interface ApiContext {
  service: InferenceService;
  metrics: Metrics;
  log: Logger;
  timing: Timing;
}

export type Handler = (request: FastifyRequest, reply: FastifyReply) => unknown;

export interface Route {
  method: "GET" | "POST";
  path: string;
  /** One line for /openapi.json. */
  summary: string;
  handler: Handler;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Monotonic time at which the head of the request had arrived. */
    arrivedMs: number;
  }
}
