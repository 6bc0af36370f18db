/** GET /v1/models and /v1/models/{id}: the one served model, with vLLM's and llama.cpp's fields together. */
import type { ModelInfo } from "../inference.js";
import type { ApiContext, Route } from "./context.js";
import { modelNotFound } from "./sampling.js";

function modelObject(model: ModelInfo, contextLength: number) {
  return {
    id: model.id,
    object: "model",
    created: model.createdS,
    owned_by: "glm-relay",
    root: model.id,
    parent: null,
    max_model_len: contextLength,
    permission: [],
    meta: {
      n_ctx_train: model.contextLength,
      n_vocab: model.vocabSize,
      n_embd: model.hiddenSize,
      n_params: model.parameterCount,
      size: model.weightBytes,
    },
  };
}

export function modelRoutes({ service }: ApiContext): Route[] {
  const { model } = service;
  return [
    {
      method: "GET",
      path: "/v1/models",
      summary: "The served model, as a list.",
      handler: () => ({ object: "list", data: [modelObject(model, service.contextLength)] }),
    },
    {
      // A wildcard, since ids like org/name hold a slash that not every client escapes.
      method: "GET",
      path: "/v1/models/*",
      summary: "The served model by its id, or as `default`.",
      handler: (request) => {
        const id = (request.params as { "*": string })["*"];
        if (id !== model.id && id !== "default") throw modelNotFound(id, model);
        return modelObject(model, service.contextLength);
      },
    },
  ];
}
