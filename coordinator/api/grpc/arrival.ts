/** A request that does not arrive: grpc-js waits for the message of an open call for as long as it lasts. */
import { ServerInterceptingCall, type ServerInterceptor } from "@grpc/grpc-js";
import { RelayError } from "../../../common/errors.js";
import { inferenceName } from "../../../proto/public.js";
import { toStatus } from "./status.js";

/** Ends calls of the public service whose request is not there within the time. */
export function arrivalLimit(limitMs: number): ServerInterceptor {
  return ({ path }, call) => {
    // A stream of the reflection service is open for as long as its client likes.
    if (!path.startsWith(`/${inferenceName}/`)) return new ServerInterceptingCall(call);
    return new ServerInterceptingCall(call, {
      start(next) {
        const timer = setTimeout(() => {
          const problem = `the request took longer than ${limitMs / 1_000} s to arrive`;
          call.sendStatus(toStatus(new RelayError("deadline_exceeded", problem)));
        }, limitMs);
        next({
          onReceiveHalfClose(proceed) {
            clearTimeout(timer);
            proceed();
          },
          onCancel: () => clearTimeout(timer),
        });
      },
    });
  };
}
