/** POST /tokenize and /detokenize, under the names that vLLM's and llama.cpp's clients look for. */
import { bodyAs } from "./body.js";
import type { ApiContext, Handler, Route } from "./context.js";

export function tokenizeRoutes(context: ApiContext): Route[] {
  const handler =
    (endpoint: "tokenize" | "detokenize"): Handler =>
    async (request, reply) => {
      const { buffer } = await bodyAs(context, request, endpoint);
      return reply.type("application/json; charset=utf-8").send(Buffer.from(buffer));
    };
  return [
    {
      method: "POST",
      path: "/tokenize",
      summary: "Text or messages to token ids; `prompt` or `messages` as in vLLM, `content` as in llama.cpp.",
      handler: handler("tokenize"),
    },
    {
      method: "POST",
      path: "/detokenize",
      summary: "Token ids to text, under both names that clients look for.",
      handler: handler("detokenize"),
    },
  ];
}
