/**
 * GET /v1/requests/{id}, POST /v1/requests/{id}/cancel: what has become of a generation request. Its id is the one
 * that its answer has, or would have had; who did not get as far as to see it asks by the x-request-id that it
 * sent, as the tenant that it was.
 */
import type { FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import type { Acceptance, GenerationRequest, RequestState } from "../inference.js";
import type { ApiContext, Handler, Route } from "./context.js";
import { errorBody } from "./errors.js";
import { show } from "./fields.js";
import { cancelledByRequest } from "./follow.js";
import { readRequestHeaders } from "./request-headers.js";

export type RequestStatus = "queued" | "running" | "completed" | "failed";

export interface RequestObject {
  id: string;
  object: "request";
  status: RequestStatus;
  /** Unix time in seconds. */
  created_at: number;
  /** Of a completed one: just what its client would have got. */
  response?: object;
  /** Of a failed one. */
  error?: object;
}

export function requestObject(
  { id, accepted }: Pick<GenerationRequest, "id" | "accepted">,
  status: RequestStatus,
  outcome: Pick<RequestObject, "response" | "error"> = {},
): RequestObject {
  return { id, object: "request", status, created_at: createdS(accepted), ...outcome };
}

export function requestRoutes(context: ApiContext): Route[] {
  return [
    {
      method: "GET",
      path: "/v1/requests/:id",
      summary: "What has become of a request: one that runs, or one that a restarted coordinator finished.",
      handler: getHandler(context),
    },
    {
      method: "POST",
      path: "/v1/requests/:id/cancel",
      summary: "Ends a request that runs; its client gets the error `cancelled`.",
      handler: cancelHandler(context),
    },
  ];
}

function getHandler({ service }: ApiContext): Handler {
  return async (request, reply) => {
    const name = nameOf(request);
    const state = await service.lookUp(name, tenantOf(request));
    if (state === null) {
      const expected =
        "expected one that runs, or that a restarted coordinator finished within the last hour";
      throw notFound(name, expected);
    }
    if (state.status !== "ended") return objectOf(state);
    return reply.type("application/json; charset=utf-8").send(state.answer);
  };
}

function cancelHandler({ service, running }: ApiContext): Handler {
  return async (request) => {
    const name = nameOf(request);
    const state = await service.lookUp(name, tenantOf(request));
    if (state === null || state.status === "ended" || !running.cancel(state.id)) {
      throw notFound(name, "expected the id of a running request");
    }
    return { ...objectOf(state), status: "failed", error: errorBody(cancelledByRequest()).error };
  };
}

type Unfinished = Exclude<RequestState, { status: "ended" }>;

function objectOf({ id, status, createdS }: Unfinished): RequestObject {
  return { id, object: "request", status, created_at: createdS };
}

function nameOf(request: FastifyRequest): string {
  return (request.params as { id: string }).id;
}

/** @throws RelayError invalid_value naming the header */
export function tenantOf(request: FastifyRequest): string {
  return readRequestHeaders((name) => [request.headers[name] ?? []].flat(), request.arrivedMs).tenant;
}

function notFound(name: string, expected: string): RelayError {
  return new RelayError("not_found", `id: ${show(name)} is not known, ${expected}`, { param: "id" });
}

/** Unix time in seconds at which the request was accepted. */
export function createdS(accepted: Acceptance | undefined): number {
  return Math.floor((accepted?.atMs ?? 0) / 1_000);
}
