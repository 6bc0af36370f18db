/** POST /v1/chat/completions: from the body to a call. How its answer looks is in chat-answer.ts. */
import type { FastifyRequest } from "fastify";
import { RelayError } from "../../common/errors.js";
import { maxTopLogprobs } from "../../common/limits.js";
import { type Call, newRequestId } from "./answer.js";
import { ChatAnswer } from "./chat-answer.js";
import type { ApiContext, Route } from "./context.js";
import { asObject, booleanField, type Fields, integerField, readFields } from "./fields.js";
import { answerCall } from "./generation.js";
import { tokenNames } from "./logprobs.js";
import { messagesField } from "./messages.js";
import { checkContext, checkSampling, expandChoices, samplingFields, samplingParams } from "./sampling.js";
import { noteUnknownFields } from "./strict.js";
import { harmlessFields, refuseTools, refuseUnsupported, unsupportedInChat } from "./unsupported.js";

export const chatFields = {
  messages: messagesField,
  ...samplingFields,
  max_tokens: integerField({ min: 1 }),
  max_completion_tokens: integerField({ min: 1 }),
  logprobs: booleanField(false),
  top_logprobs: integerField({ min: 0, max: maxTopLogprobs }),
  add_generation_prompt: booleanField(true),
} satisfies Fields;

const knownFields = new Set([
  ...Object.keys(chatFields),
  ...Object.keys(unsupportedInChat),
  ...harmlessFields,
  "tools",
]);

export function chatRoute(context: ApiContext): Route {
  return {
    method: "POST",
    path: "/v1/chat/completions",
    summary: "Answers a conversation; a stream of server-sent events with `stream`.",
    handler: (request, reply) => answerCall(context, request, reply, () => prepareChat(context, request)),
  };
}

async function prepareChat(context: ApiContext, request: FastifyRequest): Promise<Call> {
  const { service, log } = context;
  const { model, prompt } = service;
  const body = asObject(request.body, "body");
  noteUnknownFields(request, body, knownFields, log);
  const values = readFields(chatFields, body);
  refuseUnsupported(body, unsupportedInChat);
  refuseTools(body);
  checkSampling(values, model);
  if (values.top_logprobs !== undefined && values.top_logprobs > 0 && !values.logprobs) {
    throw new RelayError("invalid_value", 'top_logprobs: given without "logprobs": true, expected none', {
      param: "top_logprobs",
    });
  }
  if (!prompt.available) {
    throw new RelayError(
      "not_supported",
      `the model ${model.id} has no tokenizer: send token ids to /v1/completions`,
    );
  }

  const promptTokens = await prompt.encodeChat(values.messages, {
    addGenerationPrompt: values.add_generation_prompt,
  });
  // The newer name wins, as at OpenAI.
  const param = values.max_completion_tokens === undefined ? "max_tokens" : "max_completion_tokens";
  const given = values.max_completion_tokens ?? values.max_tokens;
  const isGiven = given !== undefined;
  const maxTokens = given ?? Math.max(1, model.contextLength - promptTokens.length);
  checkContext(promptTokens.length, maxTokens, model.contextLength, isGiven ? param : "messages");

  const n = values.n ?? 1;
  const id = newRequestId("chatcmpl");
  const topLogprobs = values.logprobs ? (values.top_logprobs ?? 0) : -1;
  const choices = expandChoices([promptTokens], n, values.seed);
  return {
    generation: {
      id,
      logId: request.id,
      endpoint: "chat",
      choices,
      sampling: samplingParams(values, model, { maxTokens, topLogprobs, promptLogprobs: false }),
      text: { skipSpecialTokens: values.skip_special_tokens, chatReply: true },
    },
    n,
    stream: values.stream,
    streamOptions: values.stream_options,
    answer: new ChatAnswer(service, id, choices, {
      logprobs: values.logprobs,
      tokenIds: values.return_token_ids,
      names: tokenNames(prompt, values.return_tokens_as_token_ids),
    }),
  };
}
