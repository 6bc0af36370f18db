/** POST /v1/chat/completions: its body is read in chat-body.ts, its answer is written in chat-answer.ts. */
import { bodyAs } from "./body.js";
import { ChatAnswer } from "./chat-answer.js";
import type { ApiContext, Route } from "./context.js";
import { answerCall } from "./generation.js";
import { tokenNames } from "./logprobs.js";

export function chatRoute(context: ApiContext): Route {
  const { service } = context;
  return {
    method: "POST",
    path: "/v1/chat/completions",
    summary: "Answers a conversation; a stream of server-sent events with `stream`.",
    handler: (request, reply) =>
      answerCall(context, request, reply, async () => {
        const call = await bodyAs(context, request, "chat");
        const generation = { ...call.generation, logId: request.id };
        const { id, choices } = generation;
        const names = tokenNames(service.prompt, call.asTokenIds);
        return {
          ...call,
          generation,
          answer: new ChatAnswer(service, id, choices, { ...call.options, names }),
        };
      }),
  };
}
