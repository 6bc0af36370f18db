/** POST /v1/completions: its body is read in completion-body.ts, its answer is written in completion-answer.ts. */
import { CompletionAnswer } from "./completion-answer.js";
import type { ApiContext, Route } from "./context.js";
import { answerCall } from "./generation.js";

export function completionsRoute(context: ApiContext): Route {
  return {
    method: "POST",
    path: "/v1/completions",
    summary: "Continues prompts given as text or token ids; `echo` with `logprobs` scores them.",
    handler: (request, reply) =>
      answerCall(context, request, reply, "completions", ({ id, choices }, options) => {
        return new CompletionAnswer(context.service, id, choices, options);
      }),
  };
}
