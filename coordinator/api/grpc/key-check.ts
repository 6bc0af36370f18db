/** Calls that come without one of the API's keys end before anything of them is read. */
import { ServerInterceptingCall, type ServerInterceptor, status } from "@grpc/grpc-js";
import { toRelayError } from "../../../common/errors.js";
import { inferenceName } from "../../../proto/public.js";
import type { ApiContext } from "../context.js";
import type { ApiKeys } from "../keys.js";
import { acceptRequestId } from "../request-log.js";
import { toStatus } from "./status.js";

/** Health is asked by probes, which have no key. */
const openPrefix = "/grpc.health.v1.Health/";

export function keyCheck(keys: ApiKeys, { metrics, log }: ApiContext): ServerInterceptor {
  return ({ path }, call) => {
    if (path.startsWith(openPrefix)) return new ServerInterceptingCall(call);
    return new ServerInterceptingCall(call, {
      start(next) {
        next({
          onReceiveMetadata(metadata, proceed) {
            try {
              keys.require(metadata.get("authorization")[0]);
            } catch (cause) {
              const error = toRelayError(cause);
              const grpcStatus = status[error.grpcStatus];
              const ours = `/${inferenceName}/`;
              if (path.startsWith(ours)) metrics.observeGrpc(path.slice(ours.length), grpcStatus, 0);
              const requestId = acceptRequestId(metadata.get("x-request-id")[0]);
              log.info({ requestId, route: path, grpcStatus, code: error.code }, "response");
              call.sendStatus(toStatus(error));
              return;
            }
            // Nobody behind this has use for it.
            metadata.remove("authorization");
            proceed(metadata);
          },
        });
      },
    });
  };
}
