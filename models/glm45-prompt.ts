/**
 * Tokens and conversation format of GLM-4.5: GLM-4's byte ranks with more special tokens, thoughts that can
 * be switched off, and tools that are called in tags.
 */
import type { TokenizerFacts, TurnsPrompt } from "./card.js";
import { glm4_9b } from "./glm4-9b.js";

const thinkingAndTools = [
  "<think>",
  "</think>",
  "<tool_call>",
  "</tool_call>",
  "<tool_response>",
  "</tool_response>",
  "<arg_key>",
  "</arg_key>",
  "<arg_value>",
  "</arg_value>",
];

/** Ids above 151342 differ between published files: they, and names beside these, come from tokenizer.json. */
export const glm45Tokenizer: TokenizerFacts = {
  ...glm4_9b.tokenizer,
  specialTokens: [...glm4_9b.tokenizer.specialTokens, ...thinkingAndTools, "/nothink"],
  visibleTokens: thinkingAndTools,
};

export const glm45Prompt: TurnsPrompt = {
  kind: "turns",
  prefix: ["[gMASK]", "<sop>"],
  roles: {
    system: "system",
    developer: "system",
    user: "user",
    assistant: "assistant",
    tool: "tool",
    function: "tool",
    observation: "tool",
  },
  open: {
    system: "<|system|>",
    user: "<|user|>",
    assistant: "<|assistant|>",
    tool: "<|observation|>",
  },
  beforeContent: "\n",
  beforeResult: "\n<tool_response>\n",
  afterResult: "\n</tool_response>",
  thinking: { begin: "<think>", end: "</think>", before: "\n", off: "/nothink" },
  tools: {
    before:
      "\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n" +
      "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    each: "{{tool}}\n",
    after:
      "</tools>\n\nFor each function call, output the function name and arguments within the following XML " +
      "format:\n<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n" +
      "<arg_value>{arg-value-1}</arg_value>\n<arg_key>{arg-key-2}</arg_key>\n" +
      "<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>",
    indent: 0,
  },
  calls: {
    kind: "tags",
    call: ["<tool_call>", "</tool_call>"],
    name: ["<arg_key>", "</arg_key>"],
    value: ["<arg_value>", "</arg_value>"],
  },
  ownTemplate: { roles: { developer: "system", function: "tool", observation: "tool" } },
};
