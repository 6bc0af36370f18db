import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import { post, ScriptedService, startApi } from "./support.js";

const service = new ScriptedService();
let api: Api;
beforeAll(async () => {
  api = await startApi(service);
});
afterAll(() => api.close());

const messages = [{ role: "user", content: "hi" }];
const chat = (fields: object) => ({ messages, ...fields });
const completion = (fields: object) => ({ prompt: "hi", ...fields });

type Case = [body: unknown, message: string, param: string | null, code?: string];

async function refused(path: string, [body, message, param, code = "invalid_value"]: Case) {
  const before = service.submitted.length;
  const answer = await post(api, path, body);
  expect(answer.body.error.message).toContain(message);
  expect(answer.status).toBe(400);
  expect(answer.body.error).toMatchObject({ type: "invalid_request_error", param, code });
  expect(service.submitted.length).toBe(before);
}

const shared: [object, string, string, string?][] = [
  [{ temperature: 3 }, "temperature: 3 is out of range, expected a number from 0 to 2", "temperature"],
  [{ temperature: -0.1 }, "temperature: -0.1 is out of range", "temperature"],
  [{ temperature: "NaN" }, 'temperature: "NaN" is a string, expected a number from 0 to 2', "temperature"],
  [{ temperature: "1" }, 'temperature: "1" is a string', "temperature"],
  [{ temperature: null }, "temperature: null is not a value, expected a number from 0 to 2", "temperature"],
  [{ temperature: true }, "temperature: true is a boolean", "temperature"],
  [{ temperature: [1] }, "temperature: a list of 1", "temperature"],
  [{ top_p: 0 }, "top_p: 0 is out of range, expected a number above 0, at most 1", "top_p"],
  [{ top_p: 1.1 }, "top_p: 1.1 is out of range", "top_p"],
  [{ top_p: null }, "top_p: null", "top_p"],
  [{ min_p: -1 }, "min_p: -1 is out of range, expected a number from 0 to 1", "min_p"],
  [{ top_k: -2 }, "top_k: -2 is out of range, expected an integer from -1", "top_k"],
  [{ top_k: 1.5 }, "top_k: 1.5 is not an integer", "top_k"],
  [{ top_k: null }, "top_k: null", "top_k"],
  [{ seed: 1.5 }, "seed: 1.5", "seed"],
  [{ seed: 2 ** 60 }, "expected an int64: an integer up to 2^53 or a string of digits", "seed"],
  [{ seed: "9223372036854775808" }, "seed:", "seed"],
  [{ n: 0 }, "n: 0 is out of range, expected an integer from 1 to 128", "n"],
  [{ n: 129 }, "n: 129 is out of range", "n"],
  [{ stop: "" }, 'stop: "" cannot stop, expected 1 to 1024 characters', "stop"],
  [{ stop: ["a", ""] }, 'stop[1]: "" cannot stop', "stop[1]"],
  [{ stop: ["a", 5] }, "stop[1]: 5", "stop[1]"],
  [{ stop: Array(17).fill("a") }, "stop: a list of 17, expected at most 16 stop strings", "stop"],
  [{ stop: "x".repeat(1025) }, "stop: a string of 1025 characters", "stop"],
  [{ stop: 5 }, "expected a string or a list of strings", "stop"],
  [
    { stop_token_ids: [1, 257] },
    "stop_token_ids[1]: 257 is not a token id, expected an integer from 0 to 256",
    "stop_token_ids",
  ],
  [{ stop_token_ids: [-1] }, "stop_token_ids[0]: -1", "stop_token_ids"],
  [{ stop_token_ids: 3 }, "stop_token_ids:", "stop_token_ids"],
  [{ ignore_eos: "yes" }, 'ignore_eos: "yes" is a string, expected true or false', "ignore_eos"],
  [{ ignore_eos: 1 }, "ignore_eos: 1", "ignore_eos"],
  [{ min_tokens: 20, max_tokens: 10 }, "min_tokens: 20 is more than the 10 tokens", "min_tokens"],
  [{ min_tokens: -1 }, "min_tokens: -1 is out of range", "min_tokens"],
  [{ max_tokens: -1 }, "max_tokens: -1 is out of range", "max_tokens"],
  [{ max_tokens: 1.5 }, "max_tokens: 1.5 is not an integer", "max_tokens"],
  [{ max_tokens: "12" }, 'max_tokens: "12" is a string', "max_tokens"],
  [{ max_tokens: 0 }, "max_tokens: 0 is out of range", "max_tokens"],
  [{ stream: "true" }, 'stream: "true" is a string', "stream"],
  [
    { stream_options: { include_usage: true } },
    'stream_options: given without "stream": true',
    "stream_options",
  ],
  [
    { stream: true, stream_options: { include_usage: 1 } },
    "stream_options.include_usage: 1",
    "stream_options.include_usage",
  ],
  [
    { stream: true, stream_options: [] },
    "stream_options: a list of 0, expected a JSON object",
    "stream_options",
  ],
  [{ model: 7 }, "model: 7", "model"],
  ...Object.entries({
    repetition_penalty: [1.1, "x"],
    presence_penalty: [0.5, -1],
    frequency_penalty: [1, null],
    length_penalty: [2],
    logit_bias: [{ "5": 10 }],
    use_beam_search: [true],
    prompt_logprobs: [0, 5],
    truncate_prompt_tokens: [10],
    prompt_embeds: ["AAAA"],
    allowed_token_ids: [[1]],
    bad_words: [["x"]],
    vllm_xargs: [{ a: 1 }],
    response_format: [{ type: "json_object" }, { type: "json_schema", json_schema: {} }, "json"],
    structured_outputs: [{ regex: "a" }],
    guided_regex: ["a+"],
  }).flatMap(([field, values]) =>
    (values as unknown[]).map(
      (value) =>
        [{ [field]: value }, `${field}: `, field, "unsupported_parameter"] as [
          object,
          string,
          string,
          string,
        ],
    ),
  ),
];

describe("both endpoints refuse, naming field, value and expectation", () => {
  it.each(shared)("%j", async (fields, message, param, code) => {
    await refused("/v1/chat/completions", [chat(fields), message, param, code]);
    await refused("/v1/completions", [completion(fields), message, param, code]);
  });

  it("a number that JSON can write and a double cannot hold", async () => {
    const body = '{"messages":[{"role":"user","content":"hi"}],"temperature":1e999}';
    await refused("/v1/chat/completions", [
      body,
      "temperature: Infinity is not a finite number",
      "temperature",
    ]);
  });

  it.each([["[]"], ["null"], ["5"], ['"text"'], ["true"]])("a body that is no object: %s", async (body) => {
    await refused("/v1/chat/completions", [body, "body: ", "body"]);
    await refused("/v1/completions", [body, "expected a JSON object", "body"]);
  });
});

const calling = (member: object) => ({
  messages: [
    {
      role: "assistant",
      tool_calls: [{ id: "1", type: "function", function: { name: "f", arguments: "{}" }, ...member }],
    },
  ],
});
const tool = (described: object) => chat({ tools: [{ type: "function", function: described }] });

describe("chat refuses", () => {
  it.each<Case>([
    [
      chat({ attention_mode: "causal" }),
      'attention_mode: "causal" is not supported',
      "attention_mode",
      "unsupported_parameter",
    ],
    [{}, "messages: missing, expected a list of 1 to 4096 messages", "messages"],
    [{ messages: [] }, "messages: a list of 0, expected a list of 1 to 4096 messages", "messages"],
    [{ messages: "hi" }, 'messages: "hi" is a string', "messages"],
    [{ messages: [null] }, "messages[0]: null is not a value, expected a JSON object", "messages[0]"],
    [
      { messages: [{ role: "wizard", content: "x" }] },
      'messages[0].role: "wizard" is not a role, expected system',
      "messages[0].role",
    ],
    [{ messages: [{ content: "x" }] }, "messages[0].role: missing", "messages[0].role"],
    [
      { messages: [{ role: "user" }] },
      "messages[0].content: missing, expected a string or text parts",
      "messages[0].content",
    ],
    [{ messages: [{ role: "user", content: 5 }] }, "messages[0].content: 5", "messages[0].content"],
    [
      { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "x" } }] }] },
      'messages[0].content[0].type: "image_url" is not a part that this model reads, expected "text"',
      "messages[0].content[0].type",
    ],
    [
      { messages: [{ role: "user", content: [{ type: "text" }] }] },
      "messages[0].content[0].text: missing",
      "messages[0].content[0].text",
    ],
    [{ messages: [{ role: "user", content: "\ud800" }] }, "half a surrogate pair", "messages[0].content"],
    [
      { messages: [{ role: "user", content: [{ type: "input_audio", input_audio: {} }] }] },
      'messages[0].content[0].type: "input_audio" is not a part that this model reads, expected "text"',
      "messages[0].content[0].type",
    ],
    [
      { messages: [{ role: "assistant", content: null }] },
      "messages[0].content: null is not a value, expected a string or text parts",
      "messages[0].content",
    ],
    [
      { messages: [{ role: "assistant", tool_calls: [{}] }] },
      "messages[0].tool_calls[0].function: missing, expected a JSON object",
      "messages[0].tool_calls[0].function",
    ],
    [
      { messages: [{ role: "assistant", tool_calls: "x" }] },
      'messages[0].tool_calls: "x" is a string, expected a list of at most 128 calls',
      "messages[0].tool_calls",
    ],
    [
      { messages: [{ role: "user", content: "", tool_calls: [{}] }] },
      'messages[0].tool_calls: given for the role "user", expected "assistant"',
      "messages[0].tool_calls",
    ],
    [
      { messages: [{ role: "assistant", function_call: { name: "f", arguments: "" } }] },
      'messages[0].function_call: not supported, expected "tool_calls"',
      "messages[0].function_call",
      "unsupported_parameter",
    ],
    [calling({ id: 5 }), "messages[0].tool_calls[0].id: 5", "messages[0].tool_calls[0].id"],
    [
      calling({ type: "custom" }),
      'messages[0].tool_calls[0].type: "custom" is not supported, expected "function"',
      "messages[0].tool_calls[0].type",
    ],
    [
      calling({ function: { name: "two\nlines", arguments: "{}" } }),
      '"two\\nlines" is not a name, expected 1 to 64 letters, digits, "_", "-" and "."',
      "messages[0].tool_calls[0].function.name",
    ],
    [
      calling({ function: { name: "f", arguments: "{" } }),
      'messages[0].tool_calls[0].function.arguments: "{" is not JSON, expected a JSON object as a string',
      "messages[0].tool_calls[0].function.arguments",
    ],
    [
      calling({ function: { name: "f", arguments: "[1]" } }),
      '"[1]" is no object, expected a JSON object as a string',
      "messages[0].tool_calls[0].function.arguments",
    ],
    [
      calling({ function: { name: "f", arguments: '{"a":"\\ud800"}' } }),
      "half a surrogate pair",
      "messages[0].tool_calls[0].function.arguments",
    ],
    [
      { messages: [{ role: "assistant", content: "", reasoning_content: 5 }] },
      "messages[0].reasoning_content: 5",
      "messages[0].reasoning_content",
    ],
    [
      { messages: [{ role: "tool", content: "", tool_call_id: 5 }] },
      "messages[0].tool_call_id: 5",
      "messages[0].tool_call_id",
    ],
    [chat({ max_completion_tokens: 0 }), "max_completion_tokens: 0 is out of range", "max_completion_tokens"],
    [chat({ logprobs: 5 }), "logprobs: 5", "logprobs"],
    [chat({ top_logprobs: 3 }), 'top_logprobs: given without "logprobs": true', "top_logprobs"],
    [
      chat({ logprobs: true, top_logprobs: 21 }),
      "top_logprobs: 21 is out of range, expected an integer from 0 to 20",
      "top_logprobs",
    ],
    [chat({ logprobs: true, top_logprobs: -1 }), "top_logprobs: -1 is out of range", "top_logprobs"],
    [chat({ tools: {} }), "tools: an object, expected a list of at most 128 tools", "tools"],
    [
      chat({ tools: Array(129).fill({}) }),
      "tools: a list of 129, expected a list of at most 128 tools",
      "tools",
    ],
    [chat({ tools: [{}] }), 'tools[0].type: missing, expected "function"', "tools[0].type"],
    [
      chat({ tools: [{ type: "web_search" }] }),
      'tools[0].type: "web_search" is not supported, expected "function"',
      "tools[0].type",
    ],
    [
      chat({ tools: [{ type: "function" }] }),
      "tools[0].function: missing, expected a JSON object",
      "tools[0].function",
    ],
    [tool({}), "tools[0].function.name: missing, expected a string", "tools[0].function.name"],
    [tool({ name: "" }), '"" is not a name', "tools[0].function.name"],
    [tool({ name: "a".repeat(65) }), "is not a name", "tools[0].function.name"],
    [
      tool({ name: "f", description: 5 }),
      "tools[0].function.description: 5",
      "tools[0].function.description",
    ],
    [
      tool({ name: "f", parameters: [] }),
      "tools[0].function.parameters: a list of 0, expected a JSON object",
      "tools[0].function.parameters",
    ],
    [
      tool({ name: "f", parameters: JSON.parse(`${'{"a":'.repeat(99)}1${"}".repeat(99)}`) }),
      "tools[0]: nested deeper than 64 levels",
      "tools[0]",
    ],
    [tool({ name: "f", parameters: { "\ud800": 1 } }), "half a surrogate pair", "tools[0]"],
    [
      chat({
        tools: [
          { type: "function", function: { name: "f" } },
          { type: "function", function: { name: "f" } },
        ],
      }),
      'tools[1].function.name: "f" is there twice',
      "tools[1].function.name",
    ],
    [
      chat({ tool_choice: "required" }),
      'tool_choice: "required" is not supported, expected "none" or "auto"',
      "tool_choice",
      "unsupported_parameter",
    ],
    [
      chat({ tool_choice: { type: "function", function: { name: "f" } } }),
      'tool_choice: {...} is not supported, expected "none" or "auto"',
      "tool_choice",
      "unsupported_parameter",
    ],
    [chat({ functions: [{}] }), "functions: [...] is not supported", "functions", "unsupported_parameter"],
    [chat({ reasoning_effort: "high" }), "reasoning_effort: ", "reasoning_effort", "unsupported_parameter"],
    [
      chat({ chat_template_kwargs: { enable_thinking: false } }),
      "chat_template_kwargs.enable_thinking: this model has no thoughts to switch",
      "chat_template_kwargs.enable_thinking",
      "unsupported_parameter",
    ],
    [
      chat({ chat_template_kwargs: { style: "short" } }),
      "chat_template_kwargs.style: not supported, the prompts of this model come from no template",
      "chat_template_kwargs.style",
      "unsupported_parameter",
    ],
    [
      chat({ chat_template_kwargs: { messages: [] } }),
      'chat_template_kwargs: "messages" is not a variable',
      "chat_template_kwargs",
    ],
    [
      chat({ chat_template_kwargs: { "a b": 1 } }),
      'chat_template_kwargs: "a b" is not a variable',
      "chat_template_kwargs",
    ],
    [chat({ chat_template_kwargs: [] }), "chat_template_kwargs: a list of 0", "chat_template_kwargs"],
    [
      chat({ chat_template_kwargs: { enable_thinking: 1 } }),
      "chat_template_kwargs.enable_thinking: 1",
      "chat_template_kwargs.enable_thinking",
    ],
    [
      chat({ chat_template_kwargs: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`v${i}`, i])) }),
      "chat_template_kwargs: 65 variables, expected at most 64",
      "chat_template_kwargs",
    ],
    [
      chat({ continue_final_message: true }),
      "continue_final_message: true",
      "continue_final_message",
      "unsupported_parameter",
    ],
    [chat({ echo: true }), "echo: true", "echo", "unsupported_parameter"],
    [chat({ modalities: ["text", "audio"] }), "modalities: ", "modalities", "unsupported_parameter"],
  ])("%j", (...test) => refused("/v1/chat/completions", test));
});

describe("completions refuse", () => {
  it.each<Case>([
    [completion({ attention_mode: "both" }), 'attention_mode: "both"', "attention_mode"],
    [
      completion({ attention_mode: "prefix" }),
      'attention_mode: "prefix" is not a mode of this model, expected "causal"',
      "attention_mode",
      "unsupported_parameter",
    ],
    [
      {},
      "prompt: missing, expected a string, a list of strings, a list of token ids, or a list of such lists",
      "prompt",
    ],
    [{ prompt: [] }, "prompt: a list of 0", "prompt"],
    [{ prompt: 5 }, "prompt: 5", "prompt"],
    [{ prompt: [[]] }, "prompt[0]: a list of 0, expected a list of token ids", "prompt[0]"],
    [{ prompt: ["a", 5] }, "prompt[1]: 5", "prompt[1]"],
    [{ prompt: [[1], "a"] }, 'prompt[1]: "a" is a string, expected a list of token ids', "prompt[1]"],
    [{ prompt: [1, "a"] }, 'prompt[1]: "a" is not a token id', "prompt"],
    [
      { prompt: [1, 2, 257] },
      "prompt[2]: 257 is not a token id, expected an integer from 0 to 256",
      "prompt",
    ],
    [{ prompt: [-1] }, "prompt[0]: -1 is not a token id", "prompt"],
    [{ prompt: [0.5] }, "prompt[0]: 0.5 is not a token id", "prompt"],
    [{ prompt: [[1], [2, 9999]] }, "prompt[1][1]: 9999 is not a token id", "prompt[1]"],
    [{ prompt: "\udc00x" }, "half a surrogate pair", "prompt"],
    [{ prompt: "", add_special_tokens: false }, "prompt: no tokens", "prompt"],
    [{ prompt: Array(257).fill("a") }, "prompt: a list of 257, expected at most 256 prompts", "prompt"],
    [{ prompt: Array(200).fill("a"), n: 100 }, "expected at most 1024 choices in all", "n"],
    [
      completion({ logprobs: true }),
      "logprobs: true is a boolean, expected an integer from 0 to 20",
      "logprobs",
    ],
    [completion({ logprobs: 21 }), "logprobs: 21 is out of range", "logprobs"],
    [completion({ logprobs: -1 }), "logprobs: -1 is out of range", "logprobs"],
    [
      completion({ best_of: 3 }),
      "best_of: 3 is not supported, expected 1",
      "best_of",
      "unsupported_parameter",
    ],
    [completion({ n: 3, best_of: 2 }), "best_of: 2 is less than n", "best_of"],
    [completion({ suffix: "x" }), "suffix: ", "suffix", "unsupported_parameter"],
    [completion({ echo: "yes" }), 'echo: "yes" is a string', "echo"],
    [completion({ max_tokens: 0 }), 'max_tokens: 0 is out of range without "echo": true', "max_tokens"],
  ])("%j", (...test) => refused("/v1/completions", test));
});
