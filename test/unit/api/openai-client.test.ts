import OpenAI, { APIError, BadRequestError, NotFoundError } from "openai";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import type { Api } from "../../../coordinator/api/server.js";
import { ScriptedService, saying, startApi, tokensEvent } from "./support.js";

const service = new ScriptedService();
let api: Api;
let client: OpenAI;
beforeAll(async () => {
  api = await startApi(service, { headDelayMs: 20, pingMs: 20 });
  client = new OpenAI({ baseURL: `${api.address}/v1`, apiKey: "none" });
});
afterAll(() => api.close());
beforeEach(() => {
  service.script = saying("hello");
  service.refusal = null;
});

const chat = { model: "default", messages: [{ role: "user" as const, content: "hi" }] };

it("the official client gets a chat answer", async () => {
  const answer = await client.chat.completions.create({ ...chat, logprobs: true, top_logprobs: 1, seed: 3 });
  expect(answer.choices[0]?.message.content).toBe("hello");
  expect(answer.choices[0]?.logprobs?.content?.[0]?.token).toBe("h");
  expect(answer._request_id).toMatch(/^req-/);
  expect(service.last.choices[0]?.seed).toBe("3");
});

it("the official client reads a stream through silence", async () => {
  service.script = async function* (request) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    yield* saying("hello")(request);
  };
  const stream = await client.chat.completions.create({
    ...chat,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let usage: unknown;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  expect(text).toBe("hello");
  expect(usage).toMatchObject({ completion_tokens: 5 });
});

it("the official client's stream helper puts chunks together", async () => {
  const final = await client.chat.completions.stream(chat).finalChatCompletion();
  expect(final.choices[0]?.message).toMatchObject({ role: "assistant", content: "hello" });
  expect(final.choices[0]?.finish_reason).toBe("stop");
});

it("the official client gets completions, whole and streamed", async () => {
  const answer = await client.completions.create({
    model: "glm-test",
    prompt: [1, 2],
    echo: false,
    logprobs: 2,
  });
  expect(answer.choices[0]?.text).toBe("hello");
  expect(answer.choices[0]?.logprobs?.tokens).toEqual(["h", "e", "l", "l", "o"]);
  let text = "";
  for await (const chunk of await client.completions.create({
    model: "glm-test",
    prompt: "x",
    stream: true,
  })) {
    text += chunk.choices[0]?.text ?? "";
  }
  expect(text).toBe("hello");
});

const tools = [
  {
    type: "function" as const,
    function: {
      name: "get_weather",
      description: "The weather of a city",
      strict: true,
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  },
];

it("the official client's tools are described, called and answered", async () => {
  service.script = saying('\nget_weather\n{"city": "Beijing"}');
  const messages: OpenAI.ChatCompletionMessageParam[] = [{ role: "user", content: "Weather?" }];
  const answer = await client.chat.completions.create({ model: "default", messages, tools });
  const [choice] = answer.choices;
  expect(choice?.finish_reason).toBe("tool_calls");
  expect(choice?.message.content).toBeNull();
  const [call] = choice!.message.tool_calls!;
  expect(call).toMatchObject({
    id: expect.stringMatching(/^call_[0-9a-f]{24}$/),
    type: "function",
    function: { name: "get_weather", arguments: '{"city": "Beijing"}' },
  });

  service.script = saying("It is sunny.");
  messages.push(choice!.message, { role: "tool", tool_call_id: call!.id, content: "sun" });
  const second = await client.chat.completions.create({ model: "default", messages, tools });
  expect(second.choices[0]).toMatchObject({ finish_reason: "stop", message: { content: "It is sunny." } });
  expect(service.prompt.chatMessages).toEqual([
    { role: "user", content: "Weather?" },
    {
      role: "assistant",
      content: "",
      toolCalls: [
        {
          id: call!.id,
          name: "get_weather",
          arguments: { city: "Beijing" },
          argumentsText: '{"city": "Beijing"}',
        },
      ],
    },
    { role: "tool", content: "sun", toolCallId: call!.id },
  ]);
  // "strict" speaks to the server, not to the model.
  const { strict: _, ...described } = tools[0]!.function;
  expect(service.prompt.chatOptions.tools).toEqual([{ type: "function", function: described }]);
});

it("the official client's stream helper puts calls together", async () => {
  service.script = saying('get_weather\n{"city": "Beijing"}');
  const stream = client.chat.completions.stream({ ...chat, tools });
  const done: unknown[] = [];
  stream.on("tool_calls.function.arguments.done", ({ name, arguments: given }) => done.push([name, given]));
  const final = await stream.finalChatCompletion();
  expect(final.choices[0]?.finish_reason).toBe("tool_calls");
  expect(final.choices[0]?.message.tool_calls).toMatchObject([
    { function: { name: "get_weather", arguments: '{"city": "Beijing"}' } },
  ]);
  expect(done).toEqual([["get_weather", '{"city": "Beijing"}']]);
});

it("the official client runs tools until the model answers", async () => {
  const replies = ['get_weather\n{"city": "Oslo"}', "It rains."];
  service.script = (request) => saying(replies.shift() ?? "")(request);
  const runner = client.chat.completions.runTools({
    ...chat,
    tools: [
      {
        type: "function",
        function: {
          ...tools[0]!.function,
          parse: JSON.parse,
          function: ({ city }: { city: string }) => `${city}: rain`,
        },
      },
    ],
  });
  expect(await runner.finalContent()).toBe("It rains.");
  expect(service.prompt.chatMessages.at(-1)).toMatchObject({ role: "tool", content: "Oslo: rain" });
});

it("the official client lists models", async () => {
  const ids: string[] = [];
  for await (const model of client.models.list()) ids.push(model.id);
  expect(ids).toEqual(["glm-test"]);
  expect((await client.models.retrieve("glm-test")).object).toBe("model");
});

it("errors become the client's own, with code and param", async () => {
  const bad = await client.chat.completions
    .create({ ...chat, temperature: 3 })
    .catch((error: unknown) => error);
  expect(bad).toBeInstanceOf(BadRequestError);
  expect(bad).toMatchObject({ status: 400, code: "invalid_value", param: "temperature" });
  const unknown = await client.chat.completions
    .create({ ...chat, model: "x" })
    .catch((error: unknown) => error);
  expect(unknown).toBeInstanceOf(NotFoundError);
});

it("an error in the middle of a stream is raised with its code", async () => {
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "a");
    yield { type: "error", error: new RelayError("numeric_error", "a value is not finite") };
  };
  const stream = await client.chat.completions.create({ ...chat, stream: true });
  const read = async () => {
    for await (const _ of stream);
  };
  const error = await read().catch((cause: unknown) => cause);
  expect(error).toBeInstanceOf(APIError);
  expect(error).toMatchObject({ code: "numeric_error" });
});

it("the client retries what may succeed and nothing else", async () => {
  let asked = 0;
  const submit = service.submit.bind(service);
  service.submit = async (request) => {
    if (asked++ === 0) throw new RelayError("queue_full", "full", { retryAfterS: 0.01 });
    return submit(request);
  };
  expect((await client.chat.completions.create(chat)).choices[0]?.message.content).toBe("hello");
  expect(asked).toBe(2);
  asked = 0;
  service.submit = async () => {
    asked++;
    throw new RelayError("numeric_error", "not finite");
  };
  await expect(client.chat.completions.create(chat)).rejects.toMatchObject({ status: 500 });
  expect(asked).toBe(1);
  service.submit = submit;
});
