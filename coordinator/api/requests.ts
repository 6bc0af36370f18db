/**
 * GET /v1/requests/{id}, POST /v1/requests/{id}/cancel: what has become of a generation request. Its id is the
 * one that its answer has, or would have had.
 */
import type { FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import { type RequestId, requestId } from "../../common/ids.js";
import type { Acceptance, GenerationRequest } from "../inference.js";
import type { ApiContext, Handler, Route } from "./context.js";
import { errorBody } from "./errors.js";
import { show } from "./fields.js";
import { cancelledByRequest } from "./follow.js";

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
    const id = idOf(request);
    const state = await service.lookUp(id);
    if (state === null) {
      const expected =
        "expected one that runs, or that a restarted coordinator finished within the last hour";
      throw notFound(id, expected);
    }
    if (state.status !== "ended") {
      return { id, object: "request", status: state.status, created_at: state.createdS };
    }
    return reply.type("application/json; charset=utf-8").send(state.answer);
  };
}

function cancelHandler({ service, running }: ApiContext): Handler {
  return async (request) => {
    const id = idOf(request);
    const state = await service.lookUp(id);
    if (!running.cancel(id) || state === null || state.status === "ended") {
      throw notFound(id, "expected the id of a running request");
    }
    const { error } = errorBody(cancelledByRequest());
    return { id, object: "request", status: "failed", created_at: state.createdS, error };
  };
}

function idOf(request: FastifyRequest): RequestId {
  return requestId((request.params as { id: string }).id);
}

function notFound(id: RequestId, expected: string): RelayError {
  return new RelayError("not_found", `id: ${show(id)} is not known, ${expected}`, { param: "id" });
}

/** Unix time in seconds at which the request was accepted. */
export function createdS(accepted: Acceptance | undefined): number {
  return Math.floor((accepted?.atMs ?? 0) / 1_000);
}
