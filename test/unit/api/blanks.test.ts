/** Prefix-LMs at the API: contexts and their blanks, modes of attention, and how answers tell blanks apart. */
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import type { RequestEvent } from "../../../coordinator/inference.js";
import {
  finishEvent,
  type Json,
  post,
  type Script,
  ScriptedService,
  saying,
  startApi,
  stream,
  tokensEvent,
} from "./support.js";

const path = "/v1/completions";
const mask = 1;
const sop = 2;
const fill = { masks: [mask, 3], order: "place" as const, start: sop };

const causal = new ScriptedService();
const prefix = new ScriptedService();
const both = new ScriptedService();
const constantPositionMasks = [mask];
prefix.model.prefixModel = { fill, constantPositionMasks, causalPrefix: null };
both.model.prefixModel = { fill, constantPositionMasks, causalPrefix: [3, sop] };

const apis = new Map<ScriptedService, Api>();
const apiOf = (service: ScriptedService) => apis.get(service)!;
beforeAll(async () => {
  for (const service of [causal, prefix, both]) apis.set(service, await startApi(service));
});
afterAll(async () => {
  for (const api of apis.values()) await api.close();
});
beforeEach(() => {
  for (const service of apis.keys()) service.script = saying("yes");
});

/** Two blanks: "ab" with the text of the second token held back, and "c", ended by its limit. */
const twoBlanks: Script = async function* (request) {
  for (let choice = 0; choice < request.choices.length; choice++) {
    const held = (text: string, told: string): RequestEvent => {
      const event = tokensEvent(request, choice, text);
      return event.type === "tokens" ? { ...event, text: told } : event;
    };
    yield tokensEvent(request, choice, "a");
    yield held("b", "");
    yield { type: "blank", choice, blank: 0, mask, text: "b", reason: "stop" };
    yield held("c", "");
    yield { type: "blank", choice, blank: 1, mask: 3, text: "c", reason: "length" };
    yield finishEvent(choice, 4, { reason: "length" });
  }
};

const ids = [9, mask, 8, 3, sop];
const blanks = [
  { index: 0, mask: "\u0001", finish_reason: "stop", text: "ab" },
  { index: 1, mask: "\u0003", finish_reason: "length", text: "c" },
];

describe("a prompt of a prefix-LM", () => {
  it("is divided at its start, and keeps that through the queue", async () => {
    const { status } = await post(apiOf(prefix), path, { prompt: [ids, [3, sop, 5]], n: 2 });
    expect(status).toBe(200);
    const first = { length: 4, mask: 1, constantPosition: true, remainingMasks: [3] };
    const second = { length: 1, mask: 0, constantPosition: false, remainingMasks: [] };
    expect(prefix.last.choices.map(({ context }) => context)).toEqual([first, first, second, second]);
  });

  it("without a mask only goes on", async () => {
    await post(apiOf(prefix), path, { prompt: [9, 8, sop] });
    expect(prefix.last.choices[0]!.context).toEqual({
      length: 2,
      mask: -1,
      constantPosition: false,
      remainingMasks: [],
    });
  });

  it("must hold its start, and have room for every blank", async () => {
    const none = await post(apiOf(prefix), path, { prompt: [[sop], [9, mask]] });
    expect(none).toMatchObject({ status: 400, body: { error: { param: "prompt[1]" } } });
    const prompt = [...Array.from({ length: 20 }, () => mask), sop];
    const { status, body } = await post(apiOf(prefix), path, { prompt, max_tokens: 19 });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: "context_length_exceeded", param: "max_tokens" });
    expect(body.error.message).toContain("max_tokens is 19 for each of 20 blanks");
    expect((await post(apiOf(prefix), path, { prompt, max_tokens: 18 })).status).toBe(200);
  });
});

describe("attention_mode", () => {
  it.each([
    ["causal", "prefix", causal],
    ["prefix", "causal", prefix],
  ] as const)("of a %s model is not %s", async (_, mode, service) => {
    const { status, body } = await post(apiOf(service), path, { prompt: ids, attention_mode: mode });
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: "unsupported_parameter", param: "attention_mode" });
  });

  it("causal reads ids as they are and texts behind the model's own prefix", async () => {
    await post(apiOf(both), path, { prompt: ids, attention_mode: "causal" });
    expect(both.last.choices).toMatchObject([{ promptTokens: ids }]);
    expect(both.last.choices[0]!.context).toBeUndefined();
    await post(apiOf(both), path, { prompt: "ab", attention_mode: "causal" });
    expect(both.last.choices[0]!.promptTokens).toEqual([3, sop, 97, 98]);
    await post(apiOf(both), path, { prompt: "ab", attention_mode: "causal", add_special_tokens: false });
    expect(both.last.choices[0]!.promptTokens).toEqual([97, 98]);
    await post(apiOf(both), path, { prompt: ids, attention_mode: "prefix" });
    expect(both.last.choices[0]!.context).toMatchObject({ length: 4 });
  });
});

describe("blanks of an answer", () => {
  beforeEach(() => {
    prefix.script = twoBlanks;
  });

  it("are told with their text, and the whole text holds all of them", async () => {
    const { body } = await post(apiOf(prefix), path, {
      prompt: ids,
      n: 2,
      logprobs: 0,
      return_token_ids: true,
    });
    expect(body.choices).toHaveLength(2);
    for (const [index, choice] of body.choices.entries()) {
      expect(choice).toMatchObject({
        index,
        text: "abc",
        blanks,
        finish_reason: "length",
        stop_reason: null,
      });
      expect(choice.token_ids).toEqual([97, 98, 99]);
      expect(choice.logprobs).toMatchObject({ tokens: ["a", "b", "c"], text_offset: [0, 1, 2] });
    }
    expect(body.usage).toMatchObject({ prompt_tokens: 5, completion_tokens: 8 });
  });

  it("end in a stream with a chunk of their own; the usage comes last", async () => {
    const chunks: Json[] = await stream(apiOf(prefix), path, {
      prompt: ids,
      logprobs: 0,
      stream_options: { include_usage: true },
    });
    expect(chunks.pop()).toBe("[DONE]");
    expect(chunks.pop()).toMatchObject({ choices: [], usage: { completion_tokens: 4 } });
    const choices = chunks.map(({ choices: [choice] }) => choice);
    expect(choices.map(({ text }) => text).join("")).toBe("abc");
    expect(choices.flatMap(({ logprobs }) => logprobs?.text_offset ?? [])).toEqual([0, 1, 2]);
    let text = "";
    const told: Json[] = [];
    for (const choice of choices) {
      text += choice.text;
      if (choice.blank === undefined) continue;
      told.push({ ...choice.blank, text });
      text = "";
    }
    expect(told).toEqual(blanks);
    expect(choices.map(({ finish_reason }) => finish_reason).filter((reason) => reason !== null)).toEqual([
      "length",
    ]);
    expect(choices.at(-1)).toMatchObject({ finish_reason: "length", text: "" });
  });

  it("come behind an echoed prompt, which is no part of the first", async () => {
    const { body } = await post(apiOf(prefix), path, { prompt: ids, echo: true });
    expect(body.choices[0].text.endsWith("abc")).toBe(true);
    expect(body.choices[0].blanks).toEqual(blanks);
    const chunks: Json[] = await stream(apiOf(prefix), path, { prompt: ids, echo: true });
    const [first] = chunks[0].choices;
    expect(
      first.text +
        chunks
          .slice(1, -1)
          .map((chunk) => chunk.choices[0].text)
          .join(""),
    ).toBe(body.choices[0].text);
  });
});
