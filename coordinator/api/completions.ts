/** POST /v1/completions: its body is read in completion-body.ts, its answer is written in completion-answer.ts. */
import { bodyAs } from "./body.js";
import { CompletionAnswer } from "./completion-answer.js";
import type { ApiContext, Route } from "./context.js";
import { answerCall } from "./generation.js";
import { tokenNames } from "./logprobs.js";

export function completionsRoute(context: ApiContext): Route {
  const { service } = context;
  return {
    method: "POST",
    path: "/v1/completions",
    summary: "Continues prompts given as text or token ids; `echo` with `logprobs` scores them.",
    handler: (request, reply) =>
      answerCall(context, request, reply, async () => {
        const call = await bodyAs(context, request, "completions");
        const generation = { ...call.generation, logId: request.id };
        const { id, choices } = generation;
        const names = tokenNames(service.prompt, call.asTokenIds);
        return {
          ...call,
          generation,
          answer: new CompletionAnswer(service, id, choices, { ...call.options, names }),
        };
      }),
  };
}
