/** Fields nobody knows: ignored, since SDK users send them, unless the client asks for strictness. */
import type { FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";
import { type Body, show } from "./fields.js";
import { maxLoggedFields, maxShownCharacters } from "./limits.js";

export function noteUnknownFields(
  request: FastifyRequest,
  body: Body,
  known: ReadonlySet<string>,
  log: Logger,
): void {
  const unknown = Object.keys(body).filter((name) => !known.has(name));
  const first = unknown[0];
  if (first === undefined) return;
  if (request.headers["x-glm-strict"] === "1") {
    throw new RelayError(
      "invalid_value",
      `${show(first)} is not a field of this endpoint (X-GLM-Strict is 1)`,
      {
        param: first.slice(0, maxShownCharacters),
      },
    );
  }
  log.debug(
    { requestId: request.id, fields: unknown.slice(0, maxLoggedFields).map(show) },
    "unknown fields ignored",
  );
}
