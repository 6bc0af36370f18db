/** The prompt service with its real threads. They run compiled code: the build comes before the tests. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { LoopWatch, threadCpuClock } from "../../../bench/loop-watch.js";
import { RelayError } from "../../../common/errors.js";
import { type BodyTask, type Endpoint, readBody } from "../../../coordinator/api/read-body.js";
import type { ModelInfo } from "../../../coordinator/inference.js";
import { LocalEncoder } from "../../../coordinator/prompt/encoder.js";
import { createPromptService, type PromptService } from "../../../coordinator/prompt/service.js";
import { openTokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { chatglm2 } from "../../../models/chatglm2.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";
import { chatglm6bCard } from "./prefix-cards.js";
import { rankLines, smallTokens } from "./ranks-fixture.js";
import { sentencePieceBytes, smallPieces, tokenizerDirectory } from "./sentencepiece-fixture.js";

const directory = tokenizerDirectory(sentencePieceBytes(smallPieces));
const open: PromptService[] = [];

async function create(from = directory): Promise<PromptService> {
  const service = await createPromptService(from, chatglm3);
  open.push(service);
  return service;
}

afterEach(async () => {
  for (const service of open.splice(0)) await service.close();
});

const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => "resolved",
    (error: unknown) => (error instanceof RelayError ? error.code : error),
  );

const realTokenizers = process.env.GLM_RELAY_TOKENIZERS;
if (!realTokenizers) console.log("skipped: GLM_RELAY_TOKENIZERS names no folder with real tokenizers");

const cpuMs = threadCpuClock();

/**
 * A timer of this thread fires while the text is encoded, and this thread does little between two firings:
 * CPU time, since a busy machine delays timers too, held against that of encoding the text right here.
 */
async function expectTurning(folder: string, text: string): Promise<void> {
  const tokenizer = (await openTokenizer(folder, chatglm3))!;
  const begun = cpuMs();
  const expected = tokenizer.encodeText(text, { addSpecialTokens: false });
  const encodingMs = cpuMs() - begun;

  const service = await create(folder);
  const watch = new LoopWatch(5);
  const ids = await service.encodeText(text, false);
  const { cpuMs: stalledMs, ticks } = watch.stop();
  expect(Buffer.from(text).length).toBeGreaterThan(1_000_000);
  expect(ticks).toBeGreaterThan(1);
  expect(stalledMs, `encoding takes ${encodingMs} ms`).toBeLessThan(encodingMs / 3);
  expect(Array.from(ids)).toEqual(expected);
  expect(await service.decode(ids)).toBe(text);
}

describe("with a tokenizer", () => {
  it("encodes, decodes and describes tokens", async () => {
    const service = await create();
    expect(service.available).toBe(true);
    const ids = await service.encodeText("hello world", true);
    expect(await service.decode(ids)).toBe("[gMASK]sophello world");
    expect(await service.decode(ids, { skipSpecialTokens: true })).toBe("hello world");
    expect(service.tokenStrings(ids)).toEqual(["[gMASK]", "sop", " hello", " world"]);
    expect(Buffer.from(service.tokenBytes(ids[2]!)).toString()).toBe(" hello");
    const chat = await service.encodeChat([{ role: "user", content: "hello" }]);
    expect(service.tokenStrings(chat).at(-1)).toBe("<|assistant|>");
    const reply = service.createDetokenizer({ skipSpecialTokens: true, chatReply: true });
    expect(Array.from(chat, (token) => reply.push(token)).join("") + reply.flush()).toBe("hello");
  });

  it("keeps the special tokens that the reply is read by", async () => {
    const service = await create();
    const ids = await service.encodeChat([
      { role: "assistant", content: "hello" },
      { role: "user", content: "a" },
    ]);
    const text = (keepTokens?: string[]) => {
      const options = { skipSpecialTokens: true, chatReply: true, ...(keepTokens && { keepTokens }) };
      const reply = service.createDetokenizer(options);
      return Array.from(ids, (token) => reply.push(token)).join("") + reply.flush();
    };
    expect(text()).toBe("hello\n a");
    expect(text(["<|user|>"])).toBe("hello<|user|>\n a");
  });

  it("has the checkpoint's own template where the card says so", async () => {
    const folder = tokenizerDirectory(Buffer.from(rankLines(smallTokens())));
    const template = join(folder, "chat_template.jinja");
    writeFileSync(template, "[gMASK]<sop>{{ messages[0].content }}{{ style }}<|assistant|>");
    const service = await createPromptService(folder, glm4);
    open.push(service);
    expect(service.chatFormat).toEqual({ prompt: glm4.prompt, hasTemplate: true });
    const ids = await service.encodeChat([{ role: "user", content: "hello" }], {
      templateVariables: { style: "!" },
    });
    expect(await service.decode(ids)).toBe("[gMASK]<sop>hello!<|assistant|>");
    writeFileSync(template, "{% if %}");
    await expect(createPromptService(folder, glm4)).rejects.toMatchObject({
      code: "invalid_model",
      message: expect.stringContaining("chat_template.jinja: line 1, column 1"),
    });
    expect((await create()).chatFormat).toEqual({ prompt: chatglm3.prompt, hasTemplate: false });
  });

  it("brings errors back from the thread with code and field", async () => {
    const service = await create();
    await expect(service.encodeChat([{ role: "robot", content: "" }])).rejects.toMatchObject({
      code: "invalid_value",
      param: "messages[0].role",
    });
    expect(await codeOf(service.decode([1e6]))).toBe("invalid_value");
  });

  it("keeps the main thread turning while it encodes a megabyte", async () => {
    await expectTurning(directory, "hello world, 你好 ".repeat(55_000));
  });

  it.skipIf(!realTokenizers)("keeps it turning with ChatGLM3's tokenizer, from its opening on", async () => {
    const folder = join(realTokenizers!, "chatglm3-6b");
    const begun = cpuMs();
    await openTokenizer(folder, chatglm3);
    const openingMs = cpuMs() - begun;
    const watch = new LoopWatch(5);
    await create(folder);
    expect(watch.stop().cpuMs).toBeLessThan(openingMs / 3);
    await expectTurning(folder, "The quick brown fox, 今天天气怎么样？ ".repeat(30_000));
  });

  it("refuses more work than its queue holds, and does all of the rest", async () => {
    const service = await create();
    const tasks = Array.from({ length: 1100 }, (_, index) => codeOf(service.encodeText(`${index}`, false)));
    const outcomes = await Promise.all(tasks);
    expect(new Set(outcomes)).toEqual(new Set(["resolved", "queue_full"]));
    expect(outcomes.filter((outcome) => outcome === "resolved").length).toBeGreaterThanOrEqual(1024);
  });

  it("ends waiting work when it is closed", async () => {
    const service = await create();
    const text = "hello".repeat(20_000);
    const tasks = Array.from({ length: 8 }, () => codeOf(service.encodeText(text, false)));
    await service.close();
    expect((await Promise.all(tasks)).filter((outcome) => outcome === "draining").length).toBeGreaterThan(0);
    expect(await codeOf(service.encodeText("a", false))).toBe("draining");
  });
});

describe("bodies", () => {
  const model: ModelInfo = {
    id: "m",
    createdS: 0,
    contextLength: 100,
    vocabSize: 1,
    tokenCount: 300,
    hiddenSize: 1,
    parameterCount: 1,
    weightBytes: 1,
    defaults: { temperature: 1, topP: 1 },
    prefixModel: null,
  };
  const task = (endpoint: Endpoint, body: string): BodyTask => ({
    endpoint,
    bytes: new TextEncoder().encode(body),
    model,
    strict: false,
  });
  /** Ids are drawn anew at every reading. */
  const outcome = (reading: Promise<object>) =>
    reading.then(
      (read) =>
        "generation" in read ? { ...read, generation: { ...(read.generation as object), id: "" } } : read,
      ({ code, message, param, extra }: RelayError) => ({ code, message, param, extra }),
    );

  it.each<[Endpoint, string]>([
    ["completions", '{"prompt":"hello world","n":2,"seed":7,"echo":true,"logprobs":2,"what":1}'],
    ["completions", '{"prompt":[[5,6],[7]],"seed":"-5","stop":["a","b"],"stop_token_ids":[9]}'],
    ["completions", `{"prompt":"${"hello ".repeat(200)}"}`],
    ["completions", '{"prompt":[1,2,300]}'],
    ["completions", '{"prompt":"a","temperature":3}'],
    ["completions", '{"prompt":'],
    ["completions", "[]"],
    ["chat", '{"messages":[{"role":"user","content":"hello"}],"seed":1,"max_tokens":3}'],
    ["chat", '{"messages":[{"role":"user","content":1}]}'],
    ["tokenize", '{"prompt":"hello world","return_token_strs":true}'],
    ["tokenize", '{"content":"é😀","with_pieces":true}'],
    ["detokenize", '{"tokens":[270,271]}'],
  ])("for %s a thread reads what the main thread reads: %s", async (endpoint, body) => {
    const service = await create();
    const encoder = new LocalEncoder(await openTokenizer(directory, chatglm3));
    const given = task(endpoint, body);
    const expected = await outcome(readBody(task(endpoint, body), encoder));
    expect(await outcome(service.readBody(given))).toEqual(expected);
    expect(given.bytes).toHaveLength(0);
  });

  it("refuses bodies beyond the memory that may wait, and reads all of the rest", async () => {
    const service = await create();
    const broken = `[${" ".repeat(4 * 1024 * 1024 - 1)}`;
    const read = () => codeOf(service.readBody(task("completions", broken)));
    const outcomes = await Promise.all(Array.from({ length: 66 }, read));
    expect(outcomes.filter((outcome) => outcome === "invalid_json")).toHaveLength(64);
    expect(outcomes.slice(64)).toEqual(["queue_full", "queue_full"]);
    expect(await read()).toBe("invalid_json");
  });
});

describe("without a tokenizer", () => {
  it("speaks token ids only", async () => {
    const service = await create(temporaryDirectory());
    expect(service.available).toBe(false);
    expect(await codeOf(service.encodeText("a", true))).toBe("not_supported");
    expect(await codeOf(service.encodeChat([]))).toBe("not_supported");
    expect(await codeOf(service.decode([1]))).toBe("not_supported");
    expect(service.tokenStrings([5, 7])).toEqual(["token_id:5", "token_id:7"]);
    expect(service.tokenBytes(5)).toHaveLength(0);
    const detokenizer = service.createDetokenizer({ skipSpecialTokens: true, chatReply: true });
    expect(detokenizer.push(5) + detokenizer.flush()).toBe("");
  });

  it("is not what a broken tokenizer means", async () => {
    const broken = temporaryDirectory();
    writeFileSync(join(broken, "tokenizer.model"), "not a model");
    expect(await codeOf(createPromptService(broken, chatglm3))).toBe("invalid_model");
  });
});

describe("what a card says of its family", () => {
  it("is done to ChatGLM-6B's prompts and replies", async () => {
    const pieces = [...smallPieces.slice(0, 3), { text: "[gMASK]", type: "control" as const }];
    pieces.push({ text: "[MASK]", type: "control" }, { text: "<sop>", type: "control" });
    pieces.push(
      { text: "<eop>", type: "control" },
      { text: "<n>", type: "userDefined" },
      ...smallPieces.slice(3),
    );
    const folder = temporaryDirectory();
    const unigram = { modelType: 1, removeExtraWhitespaces: true };
    writeFileSync(join(folder, "ice_text.model"), sentencePieceBytes(pieces, unigram));
    const service = await createPromptService(folder, chatglm6bCard);
    open.push(service);
    const chat = await service.encodeChat([{ role: "user", content: "hello[MASK]" }]);
    expect(service.tokenStrings(chat).slice(-2)).toEqual(["[gMASK]", "<sop>"]);
    expect(await service.decode(chat)).toBe("hello[MASK][gMASK]<sop>");
    const fill = await service.encodeText("hello[MASK]\n", true);
    expect(service.tokenStrings(fill).slice(-4)).toEqual(["[MASK]", " ", "\n", "<sop>"]);
    const ids = await service.encodeText("\n你好,世界! [[训练时间]]\n", false);
    const reply = service.createDetokenizer({ skipSpecialTokens: true, chatReply: true });
    expect([...Array.from(ids, (id) => reply.push(id)), reply.flush()].join("")).toBe("你好，世界！ 2023年");
  });

  it("is replaced in a chat reply, and nowhere else", async () => {
    const service = await createPromptService(directory, chatglm2);
    open.push(service);
    const ids = await service.encodeText(" 在[[训练时间]]。", false);
    const decoded = (chatReply: boolean) => {
      const detokenizer = service.createDetokenizer({ skipSpecialTokens: true, chatReply });
      return [...Array.from(ids, (id) => detokenizer.push(id)), detokenizer.flush()].join("");
    };
    expect(decoded(true)).toBe("在2023年。");
    expect(decoded(false)).toBe(" 在[[训练时间]]。");
  });

  it("decides of which kind the tokenizer is", async () => {
    const tokens = smallTokens();
    const service = await createPromptService(tokenizerDirectory(Buffer.from(rankLines(tokens))), glm4_9b);
    open.push(service);
    const ids = await service.encodeChat([{ role: "user", content: "hello 🔥" }]);
    const count = tokens.length;
    const bytes = [...Buffer.from(" 🔥")];
    const hello = tokens.findIndex((token) => token.toString() === "hello");
    expect([...ids]).toEqual([count + 2, count + 4, count + 7, 10, hello, ...bytes, count + 8]);
    expect(service.tokenStrings(ids).slice(4, 7)).toEqual(["hello", " ", "<0xF0>"]);
    expect(await service.decode(ids, { skipSpecialTokens: true })).toBe("\nhello 🔥");
  });

  it("refuses a tokenizer of the other kind", async () => {
    const folder = tokenizerDirectory(Buffer.from(rankLines(smallTokens())));
    expect(await codeOf(createPromptService(folder, chatglm3))).toBe("invalid_model");
    expect(await codeOf(createPromptService(directory, glm4_9b))).toBe("invalid_model");
  });
});
