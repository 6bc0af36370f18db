/**
 * What a reply's text is made of: thoughts, content and calls of tools. A state machine per reply: text in as
 * it becomes certain, parts out. All parts of a text pushed in pieces are those of the text pushed at once.
 * Nothing here fails: what is no call, or calls a tool that was not offered, is content.
 */
import type { PromptFormat } from "../../../models/card.js";
import { LineCallReader } from "./line-calls.js";
import { content, type ReplyReader, type ReplyRules, type ToolSignature } from "./parts.js";
import { TaggedCallReader } from "./tagged-calls.js";
import { ThoughtReader } from "./thoughts.js";

export type { ReplyPart, ReplyReader, ReplyRules, ToolSignature } from "./parts.js";

/** @param promptTail Text of the prompt's last tokens. null when the reply is content alone. */
export function replyRules(
  format: PromptFormat,
  tools: readonly ToolSignature[],
  promptTail: string,
): ReplyRules | null {
  if (format.kind === "rounds") return null;
  const called = tools.length > 0;
  const isOpen = ({ begin }: { begin: string }) => promptTail.trimEnd().endsWith(begin);
  if (format.kind === "roles") {
    const tags = format.ownTemplate?.thinking;
    const thinking = tags && isOpen(tags) ? { ...tags, open: true } : null;
    if (!called) return thinking && { thinking, calls: null };
    return { thinking, calls: { ...format.calls, segment: format.generation, tools: [...tools] } };
  }
  const { begin, end } = format.thinking;
  return {
    thinking: { begin, end, open: isOpen(format.thinking) },
    calls: called ? { ...format.calls, tools: [...tools] } : null,
  };
}

export function replyReader({ thinking, calls }: ReplyRules): ReplyReader {
  const reader = callReader(calls);
  return thinking === null ? reader : new ThoughtReader(thinking, reader);
}

function callReader(calls: ReplyRules["calls"]): ReplyReader {
  if (calls === null) return plainReader;
  return calls.kind === "tags" ? new TaggedCallReader(calls) : new LineCallReader(calls);
}

const plainReader: ReplyReader = {
  push: (text) => content(text),
  finish: () => [],
};
