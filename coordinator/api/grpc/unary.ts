/** The calls of the public service that are answered at once. */
import type { handleUnaryCall } from "@grpc/grpc-js";
import { RelayError } from "../../../common/errors.js";
import { requestId } from "../../../common/ids.js";
import type { CancelResponse } from "../../../proto/generated/glm/relay/v1/CancelResponse.js";
import type { ListModelsResponse } from "../../../proto/generated/glm/relay/v1/ListModelsResponse.js";
import { inferenceDefinition } from "../../../proto/public.js";
import type { ApiContext } from "../context.js";
import { show } from "../fields.js";
import { maxInlineMessageBytes } from "../limits.js";
import { CallRecord, type Method } from "./record.js";
import { decode } from "./request.js";
import { toStatus } from "./status.js";

type Handler<T> = handleUnaryCall<Uint8Array, T>;

export function cancelHandler(context: ApiContext): Handler<CancelResponse> {
  return unary(context, "Cancel", (bytes) => {
    const { id } = decode(bytes, inferenceDefinition.Cancel.requestDeserialize);
    if (context.running.cancel(requestId(id))) return {};
    throw new RelayError("not_found", `id: ${show(id)} does not run, expected the id of a running request`, {
      param: "id",
    });
  });
}

export function listModelsHandler(context: ApiContext): Handler<ListModelsResponse> {
  return unary(context, "ListModels", (bytes) => {
    decode(bytes, inferenceDefinition.ListModels.requestDeserialize);
    const { model, contextLength } = context.service;
    return {
      models: [
        {
          id: model.id,
          max_model_len: contextLength,
          vocab_size: model.vocabSize,
          parameter_count: model.parameterCount,
          weight_bytes: model.weightBytes,
        },
      ],
    };
  });
}

function unary<T>(context: ApiContext, method: Method, answer: (request: Uint8Array) => T): Handler<T> {
  return (call, callback) => {
    const record = new CallRecord(context, method, call);
    try {
      const { length } = call.request;
      if (length > maxInlineMessageBytes) {
        const problem = `the request has ${length} bytes, expected at most ${maxInlineMessageBytes}`;
        throw new RelayError("request_too_large", problem);
      }
      const response = answer(call.request);
      record.end();
      callback(null, response);
    } catch (cause) {
      callback(toStatus(record.end(cause)!));
    }
  };
}
