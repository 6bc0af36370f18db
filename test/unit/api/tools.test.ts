/** Tools, calls and thoughts over HTTP and gRPC: what reaches the prompt, and how replies are written. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import { toolSignature } from "../../../coordinator/api/tools.js";
import { chatglm2 } from "../../../models/chatglm2.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { glm45Prompt } from "../../../models/glm45-prompt.js";
import { GrpcClient } from "../../support/grpc-client.js";
import {
  finishEvent,
  get,
  type Json,
  post,
  ScriptedService,
  saying,
  startApi,
  stream,
  tokensEvent,
} from "./support.js";

const service = new ScriptedService();
let api: Api;
let client: GrpcClient;
beforeAll(async () => {
  api = await startApi(service, {}, undefined, undefined, 0);
  client = new GrpcClient(api.grpcAddress!);
});
afterAll(async () => {
  client.close();
  await api.close();
});
beforeEach(() => {
  service.script = saying("hello");
  service.prompt.chatFormat = { prompt: glm4_9b.prompt, hasTemplate: false };
});

const path = "/v1/chat/completions";
const messages = [{ role: "user", content: "hi" }];
const tools = [
  {
    type: "function",
    function: {
      name: "f",
      parameters: { type: "object", properties: { text: { type: "string" }, n: { type: "integer" } } },
    },
  },
];
const use = (prompt: typeof service.prompt.chatFormat.prompt, hasTemplate = false) => {
  service.prompt.chatFormat = { prompt, hasTemplate };
};

interface ChatFields {
  tools?: typeof tools;
  include_reasoning?: boolean;
  parallel_tool_calls?: boolean;
}

/** The whole reply, and what the deltas of a stream come to, over HTTP and over gRPC. */
async function everyWay(reply: string, fields: ChatFields = { tools }) {
  service.script = saying(reply);
  const whole = (await post(api, path, { messages, ...fields })).body.choices[0];
  const chunks = (await stream(api, path, { messages, ...fields })).slice(0, -1);
  const put = { content: "", reasoning: "", calls: [] as Json[], finish: "" };
  for (const { choices } of chunks) {
    const { delta, finish_reason } = choices[0];
    put.content += delta.content ?? "";
    put.reasoning += delta.reasoning_content ?? "";
    put.finish = finish_reason ?? put.finish;
    for (const { index, ...call } of delta.tool_calls ?? []) {
      put.calls[index] ??= { ...call, function: { name: "", arguments: "" } };
      put.calls[index].function.name += call.function.name ?? "";
      put.calls[index].function.arguments += call.function.arguments;
    }
  }
  const anyId = (calls: Json[] | undefined) => calls?.map((call) => ({ ...call, id: "" }));
  expect(put.content).toBe(whole.message.content ?? "");
  expect(put.reasoning).toBe(whole.message.reasoning_content ?? "");
  expect(put.finish).toBe(whole.finish_reason);
  expect(anyId(put.calls)).toEqual(anyId(whole.message.tool_calls ?? []));

  const { tools: given = [], ...rest } = fields;
  const described = given.map(({ function: { name, parameters } }) => ({
    function: { name, parameters: JSON.stringify(parameters) },
  }));
  const { deltas, finished } = await client.generate({ ...rest, messages, tools: described });
  expect(deltas.map(({ text }) => text).join("")).toBe(put.content);
  expect(deltas.map(({ reasoning_content }) => reasoning_content).join("")).toBe(put.reasoning);
  expect(finished!.choices[0]!.finish_reason).toBe(put.finish);
  const calls = deltas.flatMap(({ tool_calls }) => tool_calls);
  expect(calls.map(({ index }) => index)).toEqual(put.calls.map((_, i) => i));
  expect(calls.map((call) => call.function)).toEqual(put.calls.map((call) => call.function));
  return whole;
}
const called = (name: string, given: string) => ({ type: "function", function: { name, arguments: given } });

describe("a reply", () => {
  it("of ChatGLM3 calls in Python, and keeps its parts apart until they are read", async () => {
    use(chatglm3.prompt);
    const call = "f\n ```python\ntool_call(text='a', n=3)\n```";
    const whole = await everyWay(`Let me see.<|assistant|>${call}`);
    expect(whole).toMatchObject({
      finish_reason: "tool_calls",
      message: { content: "Let me see.", tool_calls: [called("f", '{"text":"a","n":3}')] },
    });
    expect(service.last.text).toEqual({
      skipSpecialTokens: true,
      chatReply: true,
      keepTokens: ["<|assistant|>"],
    });
    expect((await everyWay(call, {})).message).toEqual({ role: "assistant", content: call, refusal: null });
    expect(service.last.text).toEqual({ skipSpecialTokens: true, chatReply: true });
  });

  it("of GLM-4 calls in JSON", async () => {
    const whole = await everyWay('f\n{"text": "a"}');
    expect(whole).toMatchObject({
      finish_reason: "tool_calls",
      message: { role: "assistant", content: null, tool_calls: [called("f", '{"text": "a"}')] },
    });
    expect((await everyWay('g\n{"text": "a"}')).message.content).toBe('g\n{"text": "a"}');
    expect(await everyWay('f\n{"text": "a"')).toMatchObject({
      finish_reason: "stop",
      message: { content: 'f\n{"text": "a"' },
    });
  });

  it("of GLM-4.5 thinks, speaks and calls, more than once", async () => {
    use(glm45Prompt);
    const reply =
      "<think>Two calls.</think>\nLet me see.\n<tool_call>f\n<arg_key>text</arg_key>\n<arg_value>5</arg_value>\n" +
      "<arg_key>n</arg_key>\n<arg_value>5</arg_value>\n</tool_call>\n<tool_call>f\n</tool_call>";
    expect(await everyWay(reply)).toMatchObject({
      finish_reason: "tool_calls",
      message: {
        reasoning_content: "Two calls.",
        content: "Let me see.",
        tool_calls: [called("f", '{"text":"5","n":5}'), called("f", "{}")],
      },
    });
    // Without tools a thought is a thought, and everything else content.
    const { message, finish_reason } = await everyWay(reply, {});
    expect(finish_reason).toBe("stop");
    expect(message.reasoning_content).toBe("Two calls.");
    expect(message.content).toBe(reply.slice(reply.indexOf("Let")));
    expect((await everyWay("hello", {})).message).toEqual({
      role: "assistant",
      content: "hello",
      refusal: null,
    });
  });

  it("keeps its thought to itself where the client asks for that", async () => {
    use(glm45Prompt);
    const { message } = await everyWay("<think>a</think>b", { include_reasoning: false });
    expect(message).toEqual({ role: "assistant", content: "b", refusal: null });
  });

  it("gives out one call where the client takes no more", async () => {
    use(glm45Prompt);
    const reply = "<tool_call>f</tool_call><tool_call>f</tool_call>";
    const { message } = await everyWay(reply, { tools, parallel_tool_calls: false });
    expect(message.tool_calls).toHaveLength(1);
    expect((await everyWay(reply)).message.tool_calls).toHaveLength(2);
  });

  it("that was cut off did not end with a call", async () => {
    use(glm45Prompt);
    service.script = async function* (request) {
      yield tokensEvent(request, 0, "<tool_call>f</tool_call><tool_call>f");
      yield finishEvent(0, 9, { reason: "length" });
    };
    const { body } = await post(api, path, { messages, tools });
    expect(body.choices[0]).toMatchObject({
      finish_reason: "length",
      message: { content: "<tool_call>f", tool_calls: [called("f", "{}")] },
    });
  });

  it("within a thought that the prompt opened is a thought until it ends", async () => {
    use(glm45Prompt, true);
    const encode = service.prompt.encodeChat.bind(service.prompt);
    service.prompt.encodeChat = async (given, options) => [
      ...(await encode(given, options)),
      ...Buffer.from("<think>\n"),
    ];
    expect((await everyWay("I see.</think>Yes.", {})).message).toMatchObject({
      reasoning_content: "I see.",
      content: "Yes.",
    });
    service.prompt.encodeChat = encode;
  });

  it("has its logprobs and token ids, whatever its text is part of", async () => {
    use(glm45Prompt);
    const reply = "<think>a</think>b<tool_call>f</tool_call>";
    service.script = saying(reply);
    const fields = { messages, tools, logprobs: true, return_token_ids: true };
    const { body } = await post(api, path, fields);
    expect(body.choices[0].logprobs.content).toHaveLength(reply.length);
    const choices = (await stream(api, path, fields)).slice(0, -1).map((chunk) => chunk.choices[0]);
    expect(choices.flatMap((choice: Json) => choice.token_ids ?? [])).toEqual([...Buffer.from(reply)]);
    const scored = choices.flatMap((choice: Json) => choice.logprobs?.content ?? []);
    expect(scored.map(({ token }: Json) => token).join("")).toBe(reply);
  });

  it("streams content at once, and calls with id and name first", async () => {
    use(glm45Prompt);
    service.script = saying("ab <tool_call>f</tool_call>");
    const deltas = (await stream(api, path, { messages, tools })).slice(0, -1).map((c) => c.choices[0].delta);
    expect(deltas).toEqual([
      { role: "assistant", content: "" },
      { content: "a" },
      { content: "b" },
      {
        tool_calls: [
          {
            index: 0,
            id: expect.stringMatching(/^call_/),
            type: "function",
            function: { name: "f", arguments: "" },
          },
        ],
      },
      { tool_calls: [{ index: 0, function: { arguments: "{}" } }] },
      {},
    ]);
  });

  it("of several choices is read choice by choice", async () => {
    service.script = saying("f\n{}", "no");
    const { body } = await post(api, path, { messages, tools, n: 2 });
    expect(body.choices.map(({ finish_reason }: Json) => finish_reason)).toEqual(["tool_calls", "stop"]);
    const ids = body.choices[0].message.tool_calls.map(({ id }: Json) => id);
    expect(new Set(ids).size).toBe(1);
  });
});

it("a schema says which arguments are texts", () => {
  const signature = (properties: unknown) =>
    toolSignature({ type: "function", function: { name: "f", parameters: { type: "object", properties } } });
  const text = { type: "string" };
  expect(
    signature({
      a: text,
      b: { type: ["string", "null"] },
      c: { anyOf: [text, { type: "null" }] },
      d: { enum: ["1", null] },
      e: { type: "integer", enum: [1] },
      f: { enum: [1, 2] },
      g: null,
      h: true,
      i: { oneOf: [null, { type: "object" }] },
    }),
  ).toEqual({ name: "f", texts: ["a", "b", "c", "d"], nullable: ["b", "c", "d"] });
  expect(signature(null)).toEqual({ name: "f", texts: [], nullable: [] });
  expect(toolSignature({ type: "function", function: { name: "f" } }).texts).toEqual([]);
});

describe("a request", () => {
  it("whose tools may not be called has none", async () => {
    await post(api, path, { messages, tools: [{}], tool_choice: "none" });
    expect(service.prompt.chatOptions.tools).toEqual([]);
    service.script = saying("f\n{}");
    const { body } = await post(api, path, { messages, tools, tool_choice: "none" });
    expect(body.choices[0].message.content).toBe("f\n{}");
  });

  it("hands over thoughts, calls and names, under OpenAI's and vLLM's fields", async () => {
    const given = [
      { role: "assistant", content: null, reasoning: "old", reasoning_content: "new" },
      {
        role: "assistant",
        content: "x",
        tool_calls: [{ id: "1", function: { name: "天气.now", arguments: "" } }],
      },
      { role: "assistant", tool_calls: [{ id: "2", function: { name: "f", arguments: { a: 1 } } }] },
      { role: "tool", content: "", tool_call_id: "1", name: "f" },
      { role: "user", content: "a", reasoning_content: "no", tool_calls: [] },
    ];
    expect((await post(api, path, { messages: given })).status).toBe(200);
    expect(service.prompt.chatMessages).toEqual([
      { role: "assistant", content: "", reasoning: "new" },
      {
        role: "assistant",
        content: "x",
        toolCalls: [{ id: "1", name: "天气.now", arguments: {}, argumentsText: "{}" }],
      },
      {
        role: "assistant",
        content: "",
        toolCalls: [{ id: "2", name: "f", arguments: { a: 1 }, argumentsText: '{"a":1}' }],
      },
      { role: "tool", content: "", toolCallId: "1", name: "f" },
      { role: "user", content: "a" },
    ]);
  });

  it("switches thoughts where the model has them, and tells a template more", async () => {
    use(glm45Prompt);
    await post(api, path, { messages, chat_template_kwargs: { enable_thinking: false } });
    expect(service.prompt.chatOptions).toMatchObject({ enableThinking: false });
    expect(
      (await post(api, path, { messages, chat_template_kwargs: { x: 1, enable_thinking: null } })).status,
    ).toBe(400);
    use(glm45Prompt, true);
    const chat_template_kwargs = { x: { y: [1] }, enable_thinking: true };
    expect((await post(api, path, { messages, chat_template_kwargs })).status).toBe(200);
    expect(service.prompt.chatOptions).toEqual({
      addGenerationPrompt: true,
      tools: [],
      enableThinking: true,
      templateVariables: { x: { y: [1] } },
    });
  });

  it("may be tokenized with its tools", async () => {
    const answer = await post(api, "/tokenize", { messages, tools, add_generation_prompt: false });
    expect(answer.status).toBe(200);
    expect(service.prompt.chatOptions).toMatchObject({ addGenerationPrompt: false, tools });
  });

  it("with tools for a format without them: the reply stays as it is", async () => {
    use(chatglm2.prompt);
    service.script = saying("f\n{}");
    const { body } = await post(api, path, { messages, tools });
    expect(body.choices[0].message.content).toBe("f\n{}");
  });
});

it("the API's description names the fields", async () => {
  const { body } = await get(api, "/openapi.json");
  const { schema } = body.paths[path].post.requestBody.content["application/json"];
  expect(schema.properties.tools).toMatchObject({ type: "array", maxItems: 128 });
  expect(schema.properties.tool_choice.enum).toEqual(["none", "auto"]);
  expect(schema.properties.chat_template_kwargs.properties).toEqual({ enable_thinking: { type: "boolean" } });
  const message = schema.properties.messages.items.properties;
  expect(Object.keys(message)).toEqual(
    expect.arrayContaining(["tool_calls", "tool_call_id", "reasoning_content"]),
  );
});
