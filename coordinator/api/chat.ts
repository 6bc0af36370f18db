/** POST /v1/chat/completions: its body is read in chat-body.ts, its answer is written in chat-answer.ts. */
import { ChatAnswer } from "./chat-answer.js";
import type { ApiContext, Route } from "./context.js";
import { answerCall } from "./generation.js";

export function chatRoute(context: ApiContext): Route {
  return {
    method: "POST",
    path: "/v1/chat/completions",
    summary: "Answers a conversation; a stream of server-sent events with `stream`.",
    handler: (request, reply) =>
      answerCall(context, request, reply, "chat", ({ id, choices }, options) => {
        return new ChatAnswer(context.service, id, choices, options);
      }),
  };
}
