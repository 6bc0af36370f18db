/**
 * /v1/batches: makes, shows, lists and cancels batches, and tells their changes as server-sent events. Whoever
 * runs them stands behind BatchService.
 */
import type { FastifyReply, FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import { type BatchObject, type BatchService, isFinal } from "../batches/batch.js";
import { readNewBatch } from "./batch-body.js";
import type { ApiContext, Handler, Route } from "./context.js";
import { asObject, invalid, show } from "./fields.js";
import { idempotencyParameter, readCreationName } from "./idempotency.js";
import { maxBatchBodyBytes, maxIdLength } from "./limits.js";
import { pageObject, readAfter, readLimit } from "./page.js";
import { parseJson } from "./read-body.js";
import { tenantOf } from "./requests.js";
import { SseStream } from "./sse.js";

const pageLimitDefault = 20;
const pageLimitMax = 100;

const pageParameters = [
  {
    name: "after",
    in: "query",
    required: false,
    description: "Id of the last batch of the page before.",
    schema: { type: "string", maxLength: maxIdLength },
  },
  {
    name: "limit",
    in: "query",
    required: false,
    description: "Batches of a page.",
    schema: { type: "integer", minimum: 1, maximum: pageLimitMax, default: pageLimitDefault },
  },
];

export function batchRoutes(context: ApiContext): Route[] {
  return [
    {
      method: "POST",
      path: "/v1/batches",
      summary: "Begins to work through an uploaded file of requests.",
      parameters: [idempotencyParameter],
      handler: createHandler(context),
    },
    {
      method: "GET",
      path: "/v1/batches",
      summary: "Lists batches, newest first; `after` and `limit` as at OpenAI.",
      parameters: pageParameters,
      handler: listHandler(context),
    },
    {
      method: "GET",
      path: "/v1/batches/:id",
      summary: "One batch: its state, counts and files.",
      handler: getHandler(context),
    },
    {
      method: "POST",
      path: "/v1/batches/:id/cancel",
      summary: "Begins no more lines of a batch; what is answered stays.",
      handler: cancelHandler(context),
    },
    {
      method: "GET",
      path: "/v1/batches/:id/events",
      summary: "Server-sent events: the batch as it is, and again at each change until it has ended.",
      handler: eventsHandler(context),
    },
  ];
}

function createHandler(context: ApiContext): Handler {
  return async (request) => {
    const batches = serviceOf(context);
    const tenant = tenantOf(request);
    const bytes = request.body as Uint8Array | undefined;
    if (bytes === undefined) throw invalid("body", undefined, "a JSON object");
    if (bytes.length > maxBatchBodyBytes) {
      throw new RelayError("request_too_large", `the request body is larger than ${maxBatchBodyBytes} bytes`);
    }
    const body = asObject(parseJson(bytes), "body");
    const strict = request.headers["x-glm-strict"] === "1";
    const { batch, unknown } = readNewBatch(body, context.webhookHosts, strict);
    if (unknown.length > 0) context.log.info({ requestId: request.id, fields: unknown }, "unknown fields");
    return batches.create(batch, tenant, readCreationName(request.headers["idempotency-key"], batch));
  };
}

function listHandler(context: ApiContext): Handler {
  return (request) => {
    return pageObject(serviceOf(context).list(readPage(request), tenantOf(request)));
  };
}

function getHandler(context: ApiContext): Handler {
  return (request) => find(serviceOf(context), idOf(request), tenantOf(request));
}

function cancelHandler(context: ApiContext): Handler {
  return (request) => serviceOf(context).cancel(idOf(request), tenantOf(request));
}

function eventsHandler(context: ApiContext): Handler {
  return async (request, reply) => {
    const batches = serviceOf(context);
    const id = idOf(request);
    const tenant = tenantOf(request);
    find(batches, id, tenant);
    // Who only asks for the head would be answered when the batch ends.
    if (request.method === "HEAD") return reply.type("text/event-stream; charset=utf-8").send("");
    await tell(context, reply, batches, id, tenant);
    return reply;
  };
}

/** Resolves when the stream is over: the batch has ended or is gone, the client is, or the server closes. */
async function tell(
  { timing, streams }: ApiContext,
  reply: FastifyReply,
  batches: BatchService,
  id: string,
  tenant: string,
): Promise<void> {
  const stream = new SseStream(reply, timing, () => ({}));
  const changes = new Changes();
  const unwatch = batches.watch(id, () => changes.note());
  const stop = () => changes.end();
  streams.add(stop);
  reply.raw.once("close", stop);
  if (reply.raw.destroyed) stop();
  try {
    while (await changes.next()) {
      const batch = batches.get(id, tenant);
      if (batch === null) break;
      await stream.send([JSON.stringify(batch)]);
      if (isFinal(batch.status)) {
        await stream.end();
        return;
      }
      await changes.pause(timing.batchEventMs);
    }
    stream.cut();
  } finally {
    streams.delete(stop);
    unwatch();
  }
}

/** That something has changed, however often; read by one loop. Something has at first. */
class Changes {
  #noted = true;
  #ended = false;
  #wake: (() => void) | null = null;
  #endPause: (() => void) | null = null;

  note(): void {
    this.#noted = true;
    this.#wake?.();
  }

  end(): void {
    this.#ended = true;
    this.#wake?.();
    this.#endPause?.();
  }

  /** Waits for a change. @returns False once there is nobody to be told. */
  async next(): Promise<boolean> {
    if (!this.#noted && !this.#ended) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = null;
    }
    this.#noted = false;
    return !this.#ended;
  }

  pause(ms: number): Promise<void> {
    if (this.#ended) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#endPause = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

function serviceOf({ batches }: ApiContext): BatchService {
  if (batches !== null) return batches;
  throw new RelayError("not_supported", "this coordinator keeps no batches: start it with --data");
}

function find(batches: BatchService, id: string, tenant: string): BatchObject {
  const batch = batches.get(id, tenant);
  if (batch !== null) return batch;
  throw new RelayError("not_found", `id: ${show(id)} is not known, expected the id of a batch`, {
    param: "id",
  });
}

function idOf(request: FastifyRequest): string {
  return (request.params as { id: string }).id;
}

/** @throws RelayError invalid_value naming the parameter */
function readPage(request: FastifyRequest): { after: string | null; limit: number } {
  const { after, limit } = request.query as Record<string, unknown>;
  return {
    after: readAfter(after, "the id of the last batch that was seen"),
    limit: readLimit(limit, pageLimitDefault, pageLimitMax),
  };
}
