/** The checkpoint's own template: the card's format by another way, within bounds, and never forged. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readChatTemplate } from "../../../checkpoint/chat-template.js";
import type { ChatMessage, ChatOptions, PromptPart } from "../../../coordinator/prompt/chat-message.js";
import { ChatTemplate } from "../../../coordinator/prompt/chat-template.js";
import { ProtectedText } from "../../../coordinator/prompt/protected-text.js";
import { pythonJson } from "../../../coordinator/prompt/python-text.js";
import { strftime } from "../../../coordinator/prompt/strftime.js";
import { openTokenizer } from "../../../coordinator/prompt/tokenizer.js";
import type { ModelCard } from "../../../models/card.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { glm45Prompt, glm45Tokenizer } from "../../../models/glm45-prompt.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";
import { rankLines, smallTokens } from "./ranks-fixture.js";
import { seededRandom, variedTexts } from "./sentencepiece-fixture.js";
import {
  asking,
  conversations,
  glm4LikeTemplate,
  glm4PlainTemplate,
  glm45LikeTemplate,
  weather,
} from "./templates-fixture.js";

const glm45: ModelCard = { ...glm4, family: "glm45", prompt: glm45Prompt, tokenizer: glm45Tokenizer };
const user = (content: string): ChatMessage => ({ role: "user", content });

function modelDirectory(files: Record<string, unknown> = {}): string {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "tokenizer.model"), rankLines(smallTokens()));
  for (const [name, content] of Object.entries(files)) {
    writeFileSync(join(directory, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  return directory;
}

const names = glm45Tokenizer.specialTokens;
const facts = {
  format: glm45Prompt as typeof glm45Prompt & Required<Pick<typeof glm45Prompt, "ownTemplate">>,
  names,
  variables: { eos_token: "<|endoftext|>" },
};
const template = (text: string, toolsText: string | null = null) =>
  new ChatTemplate(
    { path: "/models/x/chat_template.jinja", text, toolsText },
    facts,
    () => new Date(2024, 4, 6, 7, 8),
  );
/** Tokens in braces, so that they differ from text. */
const shown = (parts: PromptPart[]) =>
  parts.map((part) => ("token" in part ? `{${part.token}}` : part.text)).join("");
const rendered = (text: string, content = "hi", options: ChatOptions = {}) =>
  shown(template(text).parts([user(content)], options));

/** A template writes arguments as Python does; the card's format keeps the client's own spelling. */
const withPythonArguments = ({ toolCalls, ...message }: ChatMessage): ChatMessage => ({
  ...message,
  ...(toolCalls && {
    toolCalls: toolCalls.map((call) => ({ ...call, argumentsText: pythonJson(call.arguments, 0) })),
  }),
});

const cards: [string, ModelCard, string][] = [
  ["GLM-4-0414", glm4, glm4LikeTemplate],
  ["GLM-4-0414 without calls", glm4, glm4PlainTemplate],
  ["GLM-4.5", glm45, glm45LikeTemplate],
];

describe.each(cards)("a template like that of %s", async (_, card, text) => {
  const own = (await openTokenizer(modelDirectory({ "chat_template.jinja": text }), card))!;
  const built = (await openTokenizer(modelDirectory(), card))!;

  it("is used, and gives the ids of the card's own format", () => {
    expect([own.hasTemplate, built.hasTemplate]).toEqual([true, false]);
    own.selfCheck();
    for (const [messages, options] of conversations(() => "hello 你好\n")) {
      const spelt = messages.map((message) => withPythonArguments(message));
      expect(own.decode(own.encodeChat(spelt, options), { skipSpecialTokens: false })).toBe(
        built.decode(built.encodeChat(spelt, options), { skipSpecialTokens: false }),
      );
      expect(own.encodeChat(spelt, options)).toEqual(built.encodeChat(spelt, options));
    }
  });

  it("agrees with it for texts of every kind, names of tokens among them", () => {
    const random = seededRandom(5);
    const texts = variedTexts(6, 200);
    const text = () => {
      const name = names[random(names.length)]!;
      const part = name.slice(random(3), name.length - random(3));
      return [texts[random(texts.length)]!, part, name, ` ${name}\n`, "\ue000\ue001"][random(5)]!;
    };
    for (let round = 0; round < 60; round++) {
      for (const [messages, options] of conversations(text)) {
        const given = messages.map((message) => withPythonArguments(message));
        expect(own.encodeChat(given, options)).toEqual(built.encodeChat(given, options));
      }
    }
  });
});

it("a thought in an answer's content is taken apart, so that a template can leave it out", async () => {
  const shows = "{% for m in messages %}{{ m.content }}|{{ m.reasoning_content }};{% endfor %}";
  const messages = [
    { role: "assistant", content: "\n<think>\nhm\n</think>\n\nyes" },
    { role: "assistant", content: "<think>a</think>b", reasoning: "c" },
    { role: "assistant", content: "x <think>a</think>" },
    { role: "user", content: "<think>a</think>" },
  ];
  for (const card of [glm4, glm45]) {
    const tokenizer = (await openTokenizer(modelDirectory({ "chat_template.jinja": shows }), card))!;
    expect(tokenizer.decode(tokenizer.encodeChat(messages), { skipSpecialTokens: false })).toBe(
      "yes|hm;b|c;x <think>a</think>|;<think>a</think>|;",
    );
  }
  const built = (await openTokenizer(modelDirectory(), glm4))!;
  const text = built.decode(built.encodeChat(messages.slice(0, 1)), { skipSpecialTokens: false });
  expect(text).toContain("<think>\nhm\n</think>\n\nyes");
});

it("cards whose authors encode newline and content apart keep their own format", async () => {
  const directory = modelDirectory({ "chat_template.jinja": glm4LikeTemplate });
  expect((await openTokenizer(directory, glm4_9b))!.hasTemplate).toBe(false);
  expect("ownTemplate" in chatglm3.prompt).toBe(false);
});

describe("where a template is found", () => {
  const text = async (files: Record<string, unknown>) =>
    readChatTemplate(modelDirectory(files)).then((source) => source && [source.text, source.toolsText]);
  const config = (chat_template: unknown) => ({ "tokenizer_config.json": { chat_template } });

  it("is one of three files, in this order", async () => {
    expect(await text({})).toBeNull();
    expect(await text({ "chat_template.json": { chat_template: "c" } })).toEqual(["c", null]);
    expect(await text({ ...config("b"), "chat_template.json": { chat_template: "c" } })).toEqual(["b", null]);
    expect(await text({ ...config("b"), "chat_template.jinja": "a\n" })).toEqual(["a\n", null]);
  });

  it("may be a list with one for tools", async () => {
    const list = [
      { name: "tool_use", template: "t" },
      { name: "default", template: "d" },
    ];
    expect(await text(config(list))).toEqual(["d", "t"]);
    expect(await text(config(list.slice(1)))).toEqual(["d", null]);
    expect(shown(template("default", "tools").parts([user("a")], {}))).toBe("default");
    expect(shown(template("default", "tools").parts([user("a")], { tools: [weather] }))).toBe("tools");
  });

  it.each<[string, Record<string, unknown>, string]>([
    ["a number", config(7), '"chat_template" is 7, expected a template or a list'],
    ["a list without a default", config([{ name: "x", template: "y" }]), 'one named "default"'],
    ["too long", config("x".repeat(300_000)), "expected at most"],
  ])("is refused when it is %s", async (_, files, message) => {
    await expect(text(files)).rejects.toMatchObject({
      code: "invalid_model",
      message: expect.stringContaining(message),
    });
  });
});

describe("a template that is wrong", () => {
  const opened = (text: string) =>
    openTokenizer(modelDirectory({ "chat_template.jinja": text }), glm45).then((tokenizer) =>
      tokenizer!.selfCheck(),
    );
  it.each([
    ["an unknown tag", "[gMASK]\n{% if true %}\nx\n  {% frobnicate %}\n{% endif %}", "line 4, column 3"],
    ["an expression cut short", "a {{ 1 + }} b\n{{ 2 }}", "line 1, column 3"],
    [
      "brackets too deep",
      `{{ ${"(".repeat(50_000)}1 }}`,
      "line 1, column 1 of the chat template: Maximum call",
    ],
    ["a filter that nobody knows", "x{{ messages | frobnicate }}", "frobnicate"],
    ["a call of nothing", "{{ nothing() }}", "says: Cannot call something that is not a function"],
  ])("has %s and is refused at load, by file and place", async (_, text, message) => {
    await expect(opened(text)).rejects.toMatchObject({
      code: "invalid_model",
      message: expect.stringMatching(/chat_template\.jinja: /),
    });
    await expect(opened(text)).rejects.toThrow(message);
  });

  it("is refused when it takes too long to parse", async () => {
    // The library looks for a tag from each of the spaces anew.
    await expect(opened(" ".repeat(250_000))).rejects.toThrow("takes longer than 5000 ms to parse");
  }, 15_000);

  it.each<[string, string, ChatMessage[], ChatOptions, string]>([
    ["tools", "{{ messages }}", [user("a")], { tools: [weather] }, "tools"],
    ["calls", "{{ messages }}", asking, {}, "messages[2].tool_calls"],
  ])("leaves out %s: they are refused", (_, text, messages, options, param) => {
    let error: unknown;
    try {
      template(text).parts(messages, options);
    } catch (cause) {
      error = cause;
    }
    expect(error).toMatchObject({ code: "unsupported_parameter", param });
  });

  it("can refuse a conversation in its own words", () => {
    const strict = template(
      "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}",
    );
    let error: unknown;
    try {
      strict.parts([user("a")], {});
    } catch (cause) {
      error = cause;
    }
    expect(error).toMatchObject({
      code: "invalid_value",
      param: "messages",
      message: "messages: the model's chat template says: no system",
    });
  });

  it.each([
    [
      "loops on",
      "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
      "takes longer than 5000 ms",
    ],
    ["wants too many numbers", "{{ range(1000000000) | length }}", "expected at most 100000 numbers"],
    ["counts by nothing", "{{ range(1, 5, 0) | length }}", "expected at most 100000 numbers"],
    [
      "writes without end",
      "{% set n = namespace(s='0123456789abcdef') %}{% for i in range(22) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
      "characters, expected at most",
    ],
  ])("%s: it is stopped", (_, text, message) => {
    expect(() => rendered(text)).toThrow(message);
    expect(rendered("{{ messages[0].content }}")).toBe("hi");
  });
});

describe("rendering", () => {
  it("is as the transformers package has it", () => {
    expect(rendered("a\n  {% if true %}\n  b\n  {% endif %}\nc\n")).toBe("a\n  b\nc");
    const value = '{{ {"é": [1, 2.5, none, true, "<"]} | tojson }}';
    expect(rendered(value)).toBe('{"é": [1, 2.5, null, true, "<"]}');
    expect(rendered('{{ {"a": [1]} | tojson(indent=2) }}')).toBe('{\n  "a": [\n    1\n  ]\n}');
    expect(rendered("{{ strftime_now('%d %b %Y %H:%M %%q %q') }}")).toBe("06 May 2024 07:08 %q %q");
    expect(rendered("{{ range(3) }} {{ range(4, 1, -2) }} {{ eos_token }}")).toBe(
      "[0, 1, 2] [4, 2] {<|endoftext|>}",
    );
    expect(rendered("{{ tools is none }} {{ documents is none }} {{ x is defined }}")).toBe(
      "true true false",
    );
    expect(rendered("{{ add_generation_prompt }}", "", { addGenerationPrompt: false })).toBe("false");
  });

  it("has macros, slices and loops as templates use them", () => {
    const text =
      "{% macro shown(x) %}{% if x is string %}{{ x }}{% endif %}{% endmacro %}" +
      "{{ shown('ab').endswith('b') }} {% for m in messages[::-1] %}{{ loop.index0 }}{{ shown(m.content) }}{% endfor %}" +
      "{% set ns = namespace(n=0) %}{% for k, v in {'a': 1}.items() %}{% set ns.n = ns.n + v %}{% endfor %}{{ ns.n }}" +
      "{{ messages[0].get('name', '-') }}{{ 'x' if messages[0].tool_calls else 'y' }}";
    expect(rendered(text)).toBe("true 0hi1-y");
  });

  it("knows the further variables that a request gives, as text", () => {
    const templateVariables = { depth: { level: 3 }, mark: "<|user|>" };
    expect(rendered("{{ depth.level }}{{ mark }}", "", { templateVariables })).toBe("3<|user|>");
    expect(rendered("{{ enable_thinking }}", "", { enableThinking: false })).toBe("false");
    expect(rendered("{{ enable_thinking is defined }}")).toBe("false");
  });

  it("months are English", () => {
    expect(strftime(new Date(2025, 0, 5, 15, 4, 9), "%A %a %B %y %I %p %S")).toBe(
      "Sunday Sun January 25 03 PM 09",
    );
  });
});

describe("names of special tokens in a client's texts", () => {
  it.each([
    ["as they are", "{{ messages[0].content }}", "a<|user|>b"],
    ["stripped", "{{ messages[0].content.strip() }}", "  <|user|>  "],
    ["in JSON", "{{ messages | tojson }}", 'x<|user|>"[gMASK]'],
    ["in JSON of ASCII", "{{ messages[0].content | tojson(ensure_ascii=True) }}", "<|user|>"],
    ["in pieces", "{{ messages[0].content[:3] }}{{ messages[0].content[3:] }}", "<|user|>"],
    ["joined from two", "{{ messages[0].content.split(' ') | join('') }}", "<|us er|>"],
    ["begun by the template", "<|{{ messages[0].content }}", "user|>x"],
    ["begun by the template, then stripped", "<|{{ messages[0].content.strip() }}", "\n user|> "],
    ["around which the template writes", "<{{ messages[0].content }}>", "think"],
    [
      "of the template's text and two of the client's",
      "<|{{ messages[0].content }}{{ messages[0].content }}",
      "user|>",
    ],
    ["upper and lower", "{{ messages[0].content | lower }}", "<|USER|>"],
  ])("stay text: %s", (_, text, content) => {
    const parts = template(text).parts([user(content)], {});
    expect(parts.filter((part) => "token" in part)).toEqual([]);
  });

  it("and the template's own are tokens", () => {
    expect(rendered("<|user|>{{ '<think>' + messages[0].content }}</think>", "</think>")).toBe(
      "{<|user|>}{<think>}</think>{</think>}",
    );
  });

  it("any text comes back as it was, wherever it stands", () => {
    const text = fc.oneof(
      fc.string({ unit: "grapheme", maxLength: 12 }),
      fc.constantFrom(...names, "\ue000", "\\ue000", "<", ">", "think", " user|>"),
      fc
        .array(fc.constantFrom("<", "|", "user", "|>", "\ue000", "\uf8ff", "\\ue001", " "), { maxLength: 8 })
        .map((all) => all.join("")),
    );
    fc.assert(
      fc.property(text, text, (a, b) => {
        const parts = template("<{{ messages[0].content }}|{{ messages[0].metadata }}").parts(
          [{ ...user(a), metadata: b }],
          {},
        );
        expect(parts).toEqual([{ text: `<${a}|${b}` }]);
      }),
      { numRuns: 2_000 },
    );
  });

  it("need characters that the request leaves free", () => {
    const all = Array.from({ length: 0xf900 - 0xe000 }, (_, i) => String.fromCharCode(0xe000 + i)).join("");
    expect(() => new ProtectedText(names, all)).toThrow("private-use");
    const texts = new ProtectedText(names, all.slice(10));
    expect(texts.restore(texts.protect("<|user|>"))).toBe("<|user|>");
  });
});
