/**
 * A GenerateRequest as the body that the HTTP API would have got: one reader checks both, so the two
 * never differ. Runs on the main thread and in the threads of the prompt service alike.
 */
import { RelayError } from "../../../common/errors.js";
import { maxTopLogprobs } from "../../../common/limits.js";
import type { GenerateRequest__Output } from "../../../proto/generated/glm/relay/v1/GenerateRequest.js";
import type { Message__Output } from "../../../proto/generated/glm/relay/v1/Message.js";
import type { Tool__Output } from "../../../proto/generated/glm/relay/v1/Tool.js";
import { inferenceDefinition } from "../../../proto/public.js";
import type { ReadCall } from "../answer.js";
import type { ChatAnswerOptions } from "../chat-answer.js";
import { readChat } from "../chat-body.js";
import type { CompletionAnswerOptions } from "../completion-answer.js";
import { readCompletion } from "../completion-body.js";
import { type Body, integerField, show } from "../fields.js";
import type { ReadContext } from "../read-body.js";

/** Fields of a conversation; a completion would not look at them. */
const chatOnly = [
  "tools",
  "tool_choice",
  "parallel_tool_calls",
  "include_reasoning",
  "chat_template_kwargs",
] as const;

const logprobsField = integerField({ min: 0, max: maxTopLogprobs });

export type ReadGenerate = ReadCall<ChatAnswerOptions> | ReadCall<CompletionAnswerOptions>;

/** @throws RelayError what is wrong with the message or a field */
export async function readGenerate(bytes: Uint8Array, context: ReadContext): Promise<ReadGenerate> {
  const request = decode(bytes, inferenceDefinition.Generate.requestDeserialize);
  const source = sourceOf(request);
  return source === "messages"
    ? readChat(chatBody(request), context)
    : readCompletion(completionBody(request, source), context);
}

/**
 * A message from its bytes.
 * @throws RelayError invalid_value for bytes that are no such message, or text that is not UTF-8
 */
export function decode<T>(bytes: Uint8Array, deserialize: (bytes: Buffer) => T): T {
  const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let message: T;
  try {
    message = deserialize(buffer);
  } catch (cause) {
    throw new RelayError("invalid_value", "request: the bytes are no message of this method", { cause });
  }
  requireUtf8(message, buffer);
  return message;
}

const replacement = "\uFFFD";

/**
 * The decoder writes U+FFFD for bytes that are not UTF-8, and HTTP refuses such a body. So a message is
 * refused that holds more of them than its bytes do.
 */
function requireUtf8(message: unknown, bytes: Buffer): void {
  const text = JSON.stringify(message);
  let sent = 0;
  for (let at = text.indexOf(replacement); at >= 0; at = text.indexOf(replacement, at + 1)) {
    sent = bytes.indexOf(replacement, sent) + replacementBytes;
    if (sent < replacementBytes) {
      throw new RelayError("invalid_value", "request: a string is not valid UTF-8");
    }
  }
}

const replacementBytes = Buffer.byteLength(replacement);

/** Which field says what is asked. */
function sourceOf(request: GenerateRequest__Output): "prompt" | "prompt_token_ids" | "messages" {
  const given = [
    ...(request.prompt === undefined ? [] : (["prompt"] as const)),
    ...(request.prompt_token_ids.length === 0 ? [] : (["prompt_token_ids"] as const)),
    ...(request.messages.length === 0 ? [] : (["messages"] as const)),
  ];
  const [first, second] = given;
  if (first !== undefined && second === undefined) return first;
  const found = first === undefined ? "prompt: missing" : `${second}: given beside ${first}`;
  throw new RelayError("invalid_value", `${found}, expected one of prompt, prompt_token_ids and messages`, {
    param: second ?? "prompt",
  });
}

function completionBody(request: GenerateRequest__Output, source: "prompt" | "prompt_token_ids"): Body {
  const body = sharedBody(request);
  for (const name of chatOnly) {
    const value = request[name];
    if (value === undefined || (Array.isArray(value) && value.length === 0)) continue;
    throw new RelayError("invalid_value", `${name}: given without messages, expected none`, { param: name });
  }
  return defined({ ...body, prompt: request[source], logprobs: request.logprobs });
}

function chatBody(request: GenerateRequest__Output): Body {
  const { logprobs, tool_choice, parallel_tool_calls, include_reasoning, chat_template_kwargs } = request;
  // Checked under its own name: over HTTP the field of the number has another one in a chat.
  const alternatives = logprobsField.read(logprobs, "logprobs");
  return defined({
    ...sharedBody(request),
    messages: request.messages.map(messageBody),
    ...(request.tools.length === 0 ? {} : { tools: request.tools.map(toolBody) }),
    ...{ tool_choice, parallel_tool_calls, include_reasoning },
    ...(alternatives === undefined ? {} : { logprobs: true, top_logprobs: alternatives }),
    ...(chat_template_kwargs === undefined
      ? {}
      : { chat_template_kwargs: parse(chat_template_kwargs, "chat_template_kwargs") }),
  });
}

function sharedBody(request: GenerateRequest__Output): Body {
  const { model, max_tokens, temperature, top_p, top_k, min_p, seed, n, stop, stop_token_ids } = request;
  const { include_stop_str_in_output, ignore_eos, min_tokens, skip_special_tokens } = request;
  const { echo, add_special_tokens, attention_mode } = request;
  return {
    ...(model === "" ? {} : { model }),
    ...{ max_tokens, temperature, top_p, top_k, min_p, seed, n, stop, stop_token_ids },
    ...{ include_stop_str_in_output, ignore_eos, min_tokens, skip_special_tokens },
    ...{ echo, add_special_tokens, attention_mode },
  };
}

function messageBody({ role, tool_calls, ...texts }: Message__Output): Body {
  const { content, reasoning_content, tool_call_id, name, metadata } = texts;
  const calls = tool_calls.map(({ id, function: called }) => ({
    id,
    type: "function",
    function: { name: called?.name, arguments: called?.arguments },
  }));
  return defined({
    role,
    ...{ content, reasoning_content, tool_call_id, name, metadata },
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
  });
}

function toolBody({ function: described }: Tool__Output, index: number): Body {
  if (described === null) return { type: "function" };
  const { name, description, parameters } = described;
  const path = `tools[${index}].function.parameters`;
  return {
    type: "function",
    function: defined({
      name,
      description,
      parameters: parameters === undefined ? undefined : parse(parameters, path),
    }),
  };
}

function parse(text: string, path: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new RelayError("invalid_value", `${path}: ${show(text)} is not JSON, expected an object as JSON`, {
      param: path,
    });
  }
}

/** Without the fields that were not sent. */
function defined(body: Body): Body {
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined));
}
