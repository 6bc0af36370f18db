/** How a call ends that failed: gRPC's status, and beside it in the trailing metadata what HTTP tells. */
import type { ServiceError } from "@grpc/grpc-js";
import type { RelayError } from "../../../common/errors.js";
import { toServiceError } from "../../../common/grpc.js";
import { errorHeaders } from "../errors.js";

/**
 * Beside glm-relay-code: glm-relay-param, the error's figures (glm-relay-n-prompt-tokens, ...), and for
 * what can succeed later retry-after, retry-after-ms and gRPC's own grpc-retry-pushback-ms.
 */
export function toStatus(error: RelayError): ServiceError {
  const status = toServiceError(error);
  const set = (name: string, value: string | number) => {
    const text = String(value);
    // A header holds printable ASCII alone; the message names the field as well.
    if (/^[\x20-\x7e]+$/.test(text)) status.metadata.set(name, text);
  };
  if (error.param !== undefined) set("glm-relay-param", error.param);
  for (const [name, value] of Object.entries(error.extra)) {
    set(`glm-relay-${name.replaceAll("_", "-")}`, value);
  }
  if (error.retryable) {
    const headers = errorHeaders(error);
    for (const [name, value] of Object.entries(headers)) set(name, value);
    set("grpc-retry-pushback-ms", headers["retry-after-ms"]!);
  }
  return status;
}
