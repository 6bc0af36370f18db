/** The body of POST /v1/chat/completions: from its fields to a call. */
import { RelayError } from "../../common/errors.js";
import { maxTopLogprobs } from "../../common/limits.js";
import { promptContext } from "../prompt/prefix-boundary.js";
import { newRequestId, type ReadCall } from "./answer.js";
import type { ChatAnswerOptions } from "./chat-answer.js";
import { chatOptionFields, chatOptions, replyRulesFor } from "./chat-options.js";
import { type Body, booleanField, type Fields, integerField, readFields } from "./fields.js";
import { messagesField } from "./messages.js";
import type { ReadContext } from "./read-body.js";
import { checkContext, checkSampling, expandChoices, samplingFields, samplingParams } from "./sampling.js";
import { unknownFields } from "./strict.js";
import { harmlessFields, refuseUnsupported, unsupportedInChat } from "./unsupported.js";

export const chatFields = {
  messages: messagesField,
  ...samplingFields,
  max_tokens: integerField({ min: 1 }),
  max_completion_tokens: integerField({ min: 1 }),
  logprobs: booleanField(false),
  top_logprobs: integerField({ min: 0, max: maxTopLogprobs }),
  ...chatOptionFields,
  parallel_tool_calls: booleanField(true),
  include_reasoning: booleanField(true),
} satisfies Fields;

const knownFields = new Set([
  ...Object.keys(chatFields),
  ...Object.keys(unsupportedInChat),
  ...harmlessFields,
]);

export async function readChat(
  body: Body,
  { model, encoder, strict, seed }: ReadContext,
): Promise<ReadCall<ChatAnswerOptions>> {
  const unknown = unknownFields(body, knownFields, strict);
  const values = readFields(chatFields, body);
  refuseUnsupported(body, unsupportedInChat);
  checkSampling(values, model);
  if (values.top_logprobs !== undefined && values.top_logprobs > 0 && !values.logprobs) {
    throw new RelayError("invalid_value", 'top_logprobs: given without "logprobs": true, expected none', {
      param: "top_logprobs",
    });
  }
  if (!encoder.available) {
    throw new RelayError(
      "not_supported",
      `the model ${model.id} has no tokenizer: send token ids to /v1/completions`,
    );
  }

  const asked = chatOptions(values, encoder.chatFormat);
  const promptTokens = await encoder.encodeChat(values.messages, asked);
  const reply = replyRulesFor(encoder, asked, promptTokens);
  // The newer name wins, as at OpenAI.
  const param = values.max_completion_tokens === undefined ? "max_tokens" : "max_completion_tokens";
  const given = values.max_completion_tokens ?? values.max_tokens;
  const isGiven = given !== undefined;
  const maxTokens = given ?? Math.max(1, model.contextLength - promptTokens.length);
  checkContext(promptTokens.length, maxTokens, model.contextLength, isGiven ? param : "messages");

  const contexts = model.prefixModel
    ? [promptContext(promptTokens, model.prefixModel, "messages")]
    : undefined;
  const topLogprobs = values.logprobs ? (values.top_logprobs ?? 0) : -1;
  const n = values.n ?? 1;
  return {
    generation: {
      id: newRequestId("chatcmpl"),
      endpoint: "chat",
      choices: expandChoices([promptTokens], n, values.seed ?? seed, contexts),
      sampling: samplingParams(values, model, { maxTokens, topLogprobs, promptLogprobs: false }),
      ...(values.cache_salt === undefined ? {} : { cacheSalt: values.cache_salt }),
      text: {
        skipSpecialTokens: values.skip_special_tokens,
        chatReply: true,
        ...(reply?.calls && reply.calls.kind !== "tags" ? { keepTokens: [reply.calls.segment] } : {}),
      },
    },
    n,
    stream: values.stream,
    streamOptions: values.stream_options,
    options: {
      logprobs: values.logprobs,
      tokenIds: values.return_token_ids,
      reply,
      parallelCalls: values.parallel_tool_calls,
      reasoning: values.include_reasoning,
    },
    asTokenIds: values.return_tokens_as_token_ids,
    unknownFields: unknown,
  };
}
