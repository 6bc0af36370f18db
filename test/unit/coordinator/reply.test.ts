/** Replies taken apart: the same in pieces as at once, and nothing but a whole call is a call. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { pythonArguments } from "../../../coordinator/output/reply/python-call.js";
import {
  type ReplyPart,
  type ReplyRules,
  replyReader,
  replyRules,
} from "../../../coordinator/output/reply/reply.js";
import { pythonLiteral } from "../../../coordinator/prompt/python-text.js";
import { chatglm2 } from "../../../models/chatglm2.js";
import { chatglm3 } from "../../../models/chatglm3.js";
import { glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { glm45Prompt } from "../../../models/glm45-prompt.js";

const tools = [
  { name: "get", texts: ["city", "note"], nullable: ["note"] },
  { name: "get_weather", texts: [], nullable: [] },
  { name: "interpreter", texts: [], nullable: [] },
];
const python = replyRules(chatglm3.prompt, tools, "")!;
const json = replyRules(glm4_9b.prompt, tools, "")!;
const tags = replyRules(glm45Prompt, tools, "")!;
const z1 = replyRules(glm4.prompt, tools, "<think>")!;
const open = replyRules(glm45Prompt, tools, "<think>\n")!;

/** Neighbouring texts of one kind are one. */
function merged(parts: ReplyPart[]): ReplyPart[] {
  const all: ReplyPart[] = [];
  for (const part of parts) {
    const last = all.at(-1);
    if (part.kind !== "call" && last?.kind === part.kind) last.text += part.text;
    else all.push({ ...part });
  }
  return all;
}

function read(rules: ReplyRules, ...pieces: string[]): ReplyPart[] {
  const reader = replyReader(rules);
  return merged([...pieces.flatMap((piece) => reader.push(piece)), ...reader.finish()]);
}

const content = (text: string): ReplyPart => ({ kind: "content", text });
const reasoning = (text: string): ReplyPart => ({ kind: "reasoning", text });
const call = (name: string, given: string): ReplyPart => ({ kind: "call", name, arguments: given });

const fenced = (source: string) => `\`\`\`python\n${source}\n\`\`\``;
const argument = (key: string, value: string) =>
  `\n<arg_key>${key}</arg_key>\n<arg_value>${value}</arg_value>`;
const tagged = (name: string, ...given: string[]) => `<tool_call>${name}${given.join("")}\n</tool_call>`;

const cases: [string, ReplyRules, string, ReplyPart[]][] = [
  ["prose", python, "hello\nget", [content("hello\nget")]],
  ["nothing", python, "", []],
  [
    "a call",
    python,
    `get_weather\n ${fenced("tool_call(city='北京')")}`,
    [call("get_weather", '{"city":"北京"}')],
  ],
  ["a call with lines around", python, `\nget\n\n${fenced("tool_call()")}\n`, [call("get", "{}")]],
  [
    "prose, then a call",
    python,
    `\n I look.<|assistant|> get\n ${fenced("tool_call(a=1)")}`,
    [content("\n I look."), call("get", '{"a":1}')],
  ],
  [
    "code, where its tool is offered",
    python,
    `interpreter\n${fenced("print('a')\nprint(2)")}`,
    [call("interpreter", '{"code":"print(\'a\')\\nprint(2)"}')],
  ],
  ["two parts of prose", python, "a<|assistant|>\nb", [content("a\nb")]],
  [
    "a tool that was not offered",
    python,
    `other\n${fenced("tool_call()")}`,
    [content(`other\n${fenced("tool_call()")}`)],
  ],
  [
    "a fence that does not end",
    python,
    "get\n```python\ntool_call()",
    [content("get\n```python\ntool_call()")],
  ],
  ["another function", python, `get\n${fenced("print()")}`, [content(`get\n${fenced("print()")}`)]],
  ["a name alone", python, "get", [content("get")]],
  ["a name and prose", json, "get up\n{}", [content("get up\n{}")]],
  [
    "a call of JSON",
    json,
    'get_weather\n{"city": "x",\n "n": [1]}',
    [call("get_weather", '{"city": "x",\n "n": [1]}')],
  ],
  ["JSON that breaks off", json, 'get\n{"city": "x"', [content('get\n{"city": "x"')]],
  ["JSON that is no object", json, "get\n[1]", [content("get\n[1]")]],
  ["JSON and more", json, "get\n{} so", [content("get\n{} so")]],
  ["a segment that is cut short", json, "a<|assist", [content("a<|assist")]],
  ["a thought", tags, "\n<think>I see.\n</think>\n\nYes. ", [reasoning("I see."), content("Yes. ")]],
  ["no thought", tags, "<think></think>\nYes", [content("Yes")]],
  ["a thought that is cut off", tags, "<think> I see</thi", [reasoning("I see</thi")]],
  ["a tag that is cut off", tags, "<thin", [content("<thin")]],
  ["a tag in the middle", tags, "a <think>b</think>", [content("a <think>b</think>")]],
  [
    "a thought that was begun in the prompt",
    open,
    "I see.</think>Yes",
    [reasoning("I see."), content("Yes")],
  ],
  ["a thought, then a call of JSON", z1, "hm\n</think>\nget\n{}", [reasoning("hm"), call("get", "{}")]],
  [
    "calls in tags",
    tags,
    `<think>t</think>\n${tagged("get", argument("city", "5"), argument("n", "5"))}\n${tagged("get_weather")}\n`,
    [reasoning("t"), call("get", '{"city":"5","n":5}'), call("get_weather", "{}")],
  ],
  [
    "texts, one of which may be null",
    tags,
    tagged("get", argument("city", "null"), argument("note", "null")),
    [call("get", '{"city":"null","note":null}')],
  ],
  [
    "values that are JSON, and those that are not",
    tags,
    tagged("get_weather", argument("a", '{"b": [1]}'), argument("c", "plain\ntext"), argument("d", "None")),
    [call("get_weather", '{"a":{"b": [1]},"c":"plain\\ntext","d":"None"}')],
  ],
  [
    "a name in front of a tag",
    tags,
    "<tool_call>get<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>",
    [call("get", '{"a":1}')],
  ],
  [
    "content around calls",
    tags,
    `So: \n${tagged("get")} and \n${tagged("get")} end`,
    [content("So:"), call("get", "{}"), content(" and"), call("get", "{}"), content(" end")],
  ],
  ["a tool in tags that was not offered", tags, `a ${tagged("other")}`, [content(`a ${tagged("other")}`)]],
  ["a call that is cut off", tags, "a\n<tool_call>get\n<arg_key>", [content("a\n<tool_call>get\n<arg_key>")]],
  [
    "a key without a value",
    tags,
    "<tool_call>get\n<arg_key>a</arg_key></tool_call>",
    [content("<tool_call>get\n<arg_key>a</arg_key></tool_call>")],
  ],
  [
    "a key twice",
    tags,
    tagged("get", argument("a", "1"), argument("a", "2")),
    [content(tagged("get", argument("a", "1"), argument("a", "2")))],
  ],
  [
    "a bad call, then a good one",
    tags,
    `${tagged("no")}${tagged("get")}`,
    [content(tagged("no")), call("get", "{}")],
  ],
];

describe("a reply", () => {
  it.each(cases)("with %s", (_, rules, text, parts) => {
    expect(read(rules, text)).toEqual(parts);
    expect(read(rules, ...text)).toEqual(parts);
  });

  it("is the same in pieces as at once, whatever it is made of", () => {
    const bits = fc.constantFrom(
      ..."get get_weather interpreter <|assistant|> <think> </think> <tool_call> </tool_call>".split(" "),
      ..."<arg_key> </arg_key> <arg_value> </arg_value> ``` ```python tool_call(a='b') {} {\"a\":1} < a".split(
        " ",
      ),
      "\n",
      " ",
      "\n```",
      tagged("get", argument("city", "x")),
      `get\n${fenced("tool_call(a=1)")}`,
      'get\n{"a": 1}',
    );
    const reply = fc.array(bits, { maxLength: 12 }).map((all) => all.join(""));
    const cuts = fc.array(fc.nat({ max: 60 }), { maxLength: 8 });
    for (const rules of [python, json, tags, open, z1, { ...tags, calls: null }]) {
      fc.assert(
        fc.property(reply, cuts, (text, at) => {
          const places = [0, ...at.sort((a, b) => a - b), text.length];
          const pieces = places.slice(1).map((place, i) => text.slice(places[i], place));
          if (pieces.join("") !== text) return;
          const parts = read(rules, text);
          expect(read(rules, ...pieces)).toEqual(parts);
          expect(read(rules, ...text)).toEqual(parts);
          for (const part of parts)
            if (part.kind === "call") expect(typeof JSON.parse(part.arguments)).toBe("object");
        }),
        { numRuns: 1_500 },
      );
    }
  });

  it("gives out prose as it comes, and holds what may become a call", () => {
    const streamed = (rules: ReplyRules, text: string) => {
      const reader = replyReader(rules);
      return [...text].map((character) =>
        reader
          .push(character)
          .map((part) => ("text" in part ? part.text : "!"))
          .join(""),
      );
    };
    expect(streamed(python, "gex y")).toEqual(["", "", "gex", " ", "y"]);
    expect(streamed(json, "get\n(")).toEqual(["", "", "", "", "get\n("]);
    expect(streamed(tags, "ab <to x")).toEqual(["a", "b", "", "", "", "", " <to", " x"]);
    const silent = (text: string) => Array(text.length).fill("");
    expect(streamed(tags, "<think>ab</think>c")).toEqual([
      ...silent("<think>"),
      "a",
      "b",
      ...silent("</think>"),
      "c",
    ]);
  });

  it("is read only where there is something to read", () => {
    expect(replyRules(chatglm2.prompt, tools, "")).toBeNull();
    expect(replyRules(chatglm3.prompt, [], "")).toBeNull();
    expect(replyRules(glm4_9b.prompt, [], "")).toBeNull();
    expect(replyRules(glm4.prompt, [], "hi<|assistant|>")).toBeNull();
    const thinking = { begin: "<think>", end: "</think>", open: true };
    expect(replyRules(glm4.prompt, [], "<|assistant|>\n<think>\n")).toEqual({ thinking, calls: null });
    expect(replyRules(glm4.prompt, tools, "<think>")).toMatchObject({ thinking, calls: { kind: "json" } });
    expect(replyRules(glm45Prompt, [], "x")).toEqual({
      thinking: { begin: "<think>", end: "</think>", open: false },
      calls: null,
    });
  });
});

describe("a call in Python", () => {
  const given = (source: string) => pythonArguments(source, "tool_call");
  it.each([
    ["tool_call()", "{}"],
    [" tool_call ( a = 1 , ) \n", '{"a":1}'],
    ["tool_call(a='x', b=\"y\", c='''l\n\"m\"''')", '{"a":"x","b":"y","c":"l\\n\\"m\\""}'],
    [
      String.raw`tool_call(a='\n\t\\\'\x41\u4f60\U0001f525\q', b=r'\n')`,
      String.raw`{"a":"\n\t\\'A你🔥\\q","b":"\\n"}`,
    ],
    ["tool_call(a='x' 'y'\n\"z\")", '{"a":"xyz"}'],
    ["tool_call(a=True, b=False, c=None)", '{"a":true,"b":false,"c":null}'],
    [
      "tool_call(a=-1.50, b=.5, c=1., d=1e-7, e=+2, f=0x1F, g=1_000)",
      '{"a":-1.5,"b":0.5,"c":1,"d":1e-7,"e":2,"f":31,"g":1000}',
    ],
    ["tool_call(n=123456789012345678901234567890)", '{"n":123456789012345678901234567890}'],
    ["tool_call(a=[1, (2,), (3), ()], b={'c': [{}], 'd': 1,})", '{"a":[1,[2],3,[]],"b":{"c":[{}],"d":1}}'],
    ["tool_call(城市='北京')", '{"城市":"北京"}'],
  ])("%s", (source, expected) => {
    expect(given(source)).toBe(expected);
    expect(typeof JSON.parse(expected)).toBe("object");
  });

  it.each([
    "",
    "tool_call",
    "tool_call(",
    "tool_call(1)",
    "tool_call(a=1, a=2)",
    "tool_call(a=b)",
    "tool_call(a=f())",
    "tool_call(a=1) + 1",
    "tool_call(a=1); x",
    "other(a=1)",
    "tool_call(a='x)",
    "tool_call(a='x\ny')",
    "tool_call(a={1: 2})",
    "tool_call(a=1e999)",
    "tool_call(a=1.2.3)",
    "tool_call(a=.)",
    "tool_call(a=_)",
    "tool_call(a=12x)",
    "tool_call(a='\\x4')",
    `tool_call(a=${"[".repeat(100)}${"]".repeat(100)})`,
    `tool_call(a=${"(".repeat(200_000)})`,
    `tool_call(a=${"1".repeat(200_000)}x)`,
  ])("is not %.40s", (source) => {
    expect(given(source)).toBeNull();
  });

  it("gives back any arguments that were written as literals", () => {
    const value = fc.dictionary(fc.constantFrom("a", "b", "城"), fc.jsonValue({ maxDepth: 4 }));
    fc.assert(
      fc.property(value, (members) => {
        const plain = JSON.parse(JSON.stringify(members)) as Record<string, unknown>;
        const list = Object.entries(plain).map(([name, member]) => `${name}=${pythonLiteral(member)}`);
        expect(JSON.parse(given(`tool_call(${list.join(", ")})`)!)).toEqual(plain);
      }),
      { numRuns: 1_000 },
    );
  });
});
