/**
 * The HTTP server, and on request the gRPC one beside it: routes, request ids, and the life of a connection. Knows nothing of queues, steps and
 * workers; all it asks for stands in inference.ts.
 */
import type { IncomingMessage } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from "fastify";
import { Registry } from "prom-client";
import { bareHost, urlHost } from "../../common/address.js";
import { RelayError } from "../../common/errors.js";
import { maxBodyBytes } from "../../common/limits.js";
import type { Logger } from "../../common/log.js";
import type { BatchService, LineRunner } from "../batches/batch.js";
import { WebhookHosts } from "../batches/webhook-hosts.js";
import type { FileStore } from "../files/store.js";
import type { InferenceService } from "../inference.js";
import { WakeUps } from "../wake-ups.js";
import { batchRoutes } from "./batches.js";
import { installBodyParser, installFormParser } from "./body.js";
import { chatRoute } from "./chat.js";
import { completionsRoute } from "./completions.js";
import type { ApiContext, Route } from "./context.js";
import { answerBrokenConnection, errorHandler } from "./errors.js";
import { fileRoutes } from "./files.js";
import { RunningCalls } from "./follow.js";
import { createGrpcApi } from "./grpc/server.js";
import { healthRoutes } from "./health.js";
import type { ApiKeys } from "./keys.js";
import {
  defaultTiming,
  maxConnections,
  maxPathParameterLength,
  maxWaitingConnections,
  requestTimeoutMs,
  type Timing,
} from "./limits.js";
import { ApiLineRunner } from "./line-runner.js";
import { createMetrics } from "./metrics.js";
import { modelRoutes } from "./models.js";
import { openApiDocument } from "./openapi.js";
import { adoptOrphans } from "./orphans.js";
import { acceptRequestId, outcomeFields } from "./request-log.js";
import { boundRest } from "./request-rest.js";
import { requestRoutes } from "./requests.js";
import { tokenizeRoutes } from "./tokenize.js";

/** While it closes, how often it looks for connections whose answer has ended. */
const idleCheckMs = 20;

export interface ApiOptions {
  host: string;
  /** 0 picks a free one. */
  port: number;
  /** Of the gRPC API on the same host; 0 picks a free one, absent: none. */
  grpcPort?: number | undefined;
  /** What callers have to send; absent or null: nothing. */
  keys?: ApiKeys | null | undefined;
  log: Logger;
  /** Holds figures of other parts; /metrics shows them beside those of the API. */
  registry?: Registry;
  timing?: Partial<Timing>;
  /** Absent or null, as the next: /v1/files says that it is not offered. */
  files?: FileStore | null;
  batches?: BatchService | null;
  /** Where webhooks of batches may go; absent: nowhere. */
  webhookHosts?: WebhookHosts;
}

export interface Api {
  server: FastifyInstance;
  /** http://host:port, with the port that was bound. */
  address: string;
  /** host:port of the gRPC API; null without it. */
  grpcAddress: string | null;
  /** Answers lines of batches as the API would. */
  lines: LineRunner;
  /** The page of /metrics, for the probe port. */
  metrics(): Promise<string>;
  /** Takes no more connections, lets running responses end within a grace time, then cuts them. */
  close(): Promise<void>;
}

/** Serves once it resolves. @throws what the operating system says when an address cannot be bound. */
export async function createApi(service: InferenceService, options: ApiOptions): Promise<Api> {
  const metrics = createMetrics(service, options.registry ?? new Registry(), options.files ?? null);
  const timing = { ...defaultTiming, ...options.timing };
  const context: ApiContext = {
    service,
    metrics,
    log: options.log,
    timing,
    running: new RunningCalls(),
    arrivals: new WakeUps(),
    files: options.files ?? null,
    batches: options.batches ?? null,
    webhookHosts: options.webhookHosts ?? new WebhookHosts([]),
    streams: new Set(),
  };

  const server = fastify({
    logger: false,
    bodyLimit: maxBodyBytes,
    // While it closes, requests on open connections are answered by the service, which says why not.
    return503OnClosing: false,
    routerOptions: { maxParamLength: maxPathParameterLength },
    genReqId: (request: IncomingMessage) => acceptRequestId(request.headers["x-request-id"]),
    clientErrorHandler: (error, socket) => answerBrokenConnection(error, socket as Socket),
    frameworkErrors: (error, request, reply) => {
      reply.header("x-request-id", request.id);
      errorHandler(options.log)(error, request as FastifyRequest, reply as unknown as FastifyReply);
    },
  });
  server.server.maxConnections = maxConnections;
  // Of the head alone: a body has the time that its route gives it (body.ts, arrival.ts).
  server.server.headersTimeout = requestTimeoutMs;
  server.decorateRequest("arrivedMs", 0);
  server.decorateRequest("answered", null);
  server.decorateRequest("errorCode", null);
  installBodyParser(server, timing.arrivalMs);
  server.addHook("preClose", async () => {
    for (const end of [...context.streams]) end();
  });
  observeRequests(server, context);
  if (options.keys != null) requireKeys(server, options.keys);
  server.setErrorHandler(errorHandler(options.log));
  server.setNotFoundHandler(
    {
      // Before any body is read: there is nobody to read it for.
      onRequest: async (request: FastifyRequest) => {
        throw new RelayError(
          "not_found",
          `there is no ${request.method} ${pathOf(request).slice(0, 200)} here`,
        );
      },
    } as object,
    async () => undefined,
  );

  const routes = [
    chatRoute(context),
    completionsRoute(context),
    embeddingsRoute(context),
    ...modelRoutes(context),
    ...requestRoutes(context),
    ...fileRoutes(context),
    ...batchRoutes(context),
    ...tokenizeRoutes(context),
    ...healthRoutes(context),
  ];
  const document: Route = {
    method: "GET",
    path: "/openapi.json",
    summary: "This document.",
    handler: () => openApiDocument([...routes, document], options.keys != null),
  };
  registerRoutes(server, [...routes, document]);

  // For "localhost" fastify would open a second server, out of reach when connections are cut at close.
  const host = options.host === "localhost" ? "127.0.0.1" : bareHost(options.host);
  await server.listen({ host, port: options.port, backlog: maxWaitingConnections });
  const { port } = server.server.address() as AddressInfo;
  const grpc =
    options.grpcPort === undefined
      ? null
      : await createGrpcApi(context, host, options.grpcPort, options.keys ?? null).catch(
          async (error: unknown) => {
            await server.close();
            throw error;
          },
        );
  adoptOrphans(context);
  return {
    server,
    address: `http://${urlHost(host)}:${port}`,
    grpcAddress: grpc?.address ?? null,
    lines: new ApiLineRunner(service, metrics, options.log),
    metrics: () => metrics.scrape(),
    close: async () => {
      await Promise.all([closeServer(server, timing.closeGraceMs), grpc?.close(timing.closeGraceMs)]);
    },
  };
}

/** Every path answers every method: with its handler, or with 405 and the methods it has. */
function registerRoutes(server: FastifyInstance, routes: Route[]): void {
  const methodsOf = new Map<string, string[]>();
  for (const route of routes) {
    if (route.form === undefined) registerRoute(server, route);
    methodsOf.set(route.path, [...(methodsOf.get(route.path) ?? []), route.method]);
  }
  // Where the others are, forms stay a content type that nobody reads.
  server.register(async (scope) => {
    await installFormParser(scope);
    for (const route of routes) if (route.form !== undefined) registerRoute(scope, route);
  });
  for (const [path, methods] of methodsOf) {
    const allowed = methods.flatMap((method) => (method === "GET" ? ["GET", "HEAD"] : [method]));
    server.route({
      method: server.supportedMethods.filter((method) => !allowed.includes(method)),
      url: path,
      onRequest: async (request, reply) => {
        reply.header("allow", allowed.join(", "));
        throw new RelayError(
          "method_not_allowed",
          `${path} takes ${methods.join(" and ")}, not ${request.method}`,
        );
      },
      handler: async () => undefined,
    });
  }
}

function registerRoute(server: FastifyInstance, { method, path, quiet, open, handler }: Route): void {
  server.route({
    method,
    url: path,
    config: { quiet: quiet ?? false, open: open ?? false },
    handler: async (request, reply) => handler(request, reply),
  });
}

function embeddingsRoute({ service }: ApiContext): Route {
  return {
    method: "POST",
    path: "/v1/embeddings",
    summary: "Not offered: GLM chat models do not embed.",
    handler: () => {
      throw new RelayError("not_supported", `${service.model.id} is a chat model and makes no embeddings`);
    },
  };
}

/** Request ids in and out, processing time, and one metric and one log line per response. */
function observeRequests(server: FastifyInstance, { metrics, log, timing }: ApiContext): void {
  server.addHook("onRequest", async (request, reply) => {
    request.arrivedMs = performance.now();
    reply.header("x-request-id", request.id);
    const { raw } = reply;
    raw.once("close", () => {
      const status = raw.writableFinished ? raw.statusCode : 499;
      const route = request.routeOptions.url ?? "unmatched";
      const method = server.supportedMethods.includes(request.method) ? request.method : "other";
      const ms = performance.now() - request.arrivedMs;
      metrics.observeHttp(route, method, status, ms / 1_000);
      const { quiet } = request.routeOptions.config as { quiet?: boolean };
      log[quiet ? "debug" : "info"](
        {
          ...{ requestId: request.id, method, route, status, ms: Math.round(ms) },
          ...outcomeFields(request.answered, status === 499 ? "cancelled" : request.errorCode),
        },
        "response",
      );
      boundRest(request.raw, timing.arrivalMs);
    });
  });
  server.addHook("onSend", async (request, reply, payload) => {
    reply.header("openai-processing-ms", String(Math.round(performance.now() - request.arrivedMs)));
    return payload;
  });
}

/** Before any body is read, and for paths that are not there as well: who has no key learns nothing. */
function requireKeys(server: FastifyInstance, keys: ApiKeys): void {
  server.addHook("onRequest", async (request) => {
    const { open } = request.routeOptions.config as { open?: boolean };
    if (open !== true) keys.require(request.headers.authorization);
  });
}

/** Without the query, which may hold anything. */
function pathOf(request: FastifyRequest): string {
  return request.url.split("?", 1)[0] ?? "";
}

async function closeServer(server: FastifyInstance, graceMs: number): Promise<void> {
  const cut = setTimeout(() => server.server.closeAllConnections(), graceMs);
  // A connection whose answer ends from now on would be kept open for the client's next request.
  const idle = setInterval(() => server.server.closeIdleConnections(), idleCheckMs);
  try {
    await server.close();
    // A cut response hears of it when its socket's close callback has run, up to two turns later; only
    // then is its request cancelled.
    for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
  } finally {
    clearTimeout(cut);
    clearInterval(idle);
  }
}
