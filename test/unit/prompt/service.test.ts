/** The prompt service with its real threads. They run compiled code: the build comes before the tests. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { createPromptService, type PromptService } from "../../../coordinator/prompt/service.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";
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

  it("brings errors back from the thread with code and field", async () => {
    const service = await create();
    await expect(service.encodeChat([{ role: "robot", content: "" }])).rejects.toMatchObject({
      code: "invalid_value",
      param: "messages[0].role",
    });
    expect(await codeOf(service.decode([1e6]))).toBe("invalid_value");
  });

  it("keeps the main thread turning while it encodes a megabyte", async () => {
    const service = await create();
    const text = "hello world, 你好 ".repeat(55_000);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 5);
    const ids = await service.encodeText(text, false);
    clearInterval(timer);
    expect(text.length).toBeGreaterThan(800_000);
    expect(await service.decode(ids)).toBe(text);
    // On the main thread it would have been none; how many fit depends on the machine.
    expect(ticks).toBeGreaterThan(3);
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
