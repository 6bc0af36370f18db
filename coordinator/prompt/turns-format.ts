/** Conversations with tags for thoughts, calls and results: GLM-4.5. */
import { RelayError } from "../../common/errors.js";
import type { TurnsPrompt } from "../../models/card.js";
import type { ChatMessage, ChatOptions, PromptPart, ToolCall } from "./chat-message.js";
import { JoinedParts, toolsPieces } from "./prompt-parts.js";
import { pythonJson } from "./python-text.js";

/** @param names Finds special tokens in the card's own texts. */
export function turnsParts(
  messages: ChatMessage[],
  format: TurnsPrompt,
  { addGenerationPrompt = true, tools = [], enableThinking = true }: ChatOptions,
  names: RegExp | null,
): PromptPart[] {
  const { open, thinking, beforeContent } = format;
  const out = new JoinedParts(names);
  if (tools.length > 0) {
    out.add(open.system);
    for (const [index, piece] of toolsPieces(format.tools, tools).entries()) {
      if (index % 2 === 0) out.add(piece);
      else out.addText(piece);
    }
  }
  const roleOf = (message: ChatMessage | undefined) => message && format.roles[message.role];
  const lastQuestion = messages.findLastIndex((message) => roleOf(message) === "user");
  for (const [index, message] of messages.entries()) {
    refuseMetadata(message, index);
    const role = roleOf(message)!;
    switch (role) {
      case "system":
        out.add(open.system + beforeContent).addText(message.content);
        break;
      case "user":
        out.add(open.user + beforeContent);
        if (enableThinking) out.addText(message.content);
        else out.addText(withoutOff(message.content, thinking.off)).add(thinking.off);
        break;
      case "assistant":
        out.add(open.assistant + thinking.before + thinking.begin);
        // Thoughts of earlier rounds are left out, as the model was trained.
        if (index > lastQuestion) out.addText(message.reasoning ?? "");
        out.add(thinking.end);
        if (message.content.trim() !== "") out.add(beforeContent).addText(message.content);
        for (const call of message.toolCalls ?? []) addCall(out, call, format);
        break;
      case "tool":
        if (roleOf(messages[index - 1]) !== "tool") out.add(open.tool);
        out.add(format.beforeResult).addText(message.content).add(format.afterResult);
    }
  }
  if (addGenerationPrompt) {
    out.add(open.assistant);
    if (!enableThinking) out.add(thinking.before + thinking.begin + thinking.end);
  }
  return out.parts;
}

/** Who wrote the mark at the end of a question meant the token that goes there. */
export function withoutOff(content: string, off: string): string {
  return content.endsWith(off) ? content.slice(0, -off.length) : content;
}

/** Texts stand as they are between their tags, other values as JSON. */
function addCall(out: JoinedParts, call: ToolCall, { calls }: TurnsPrompt): void {
  out.add(`\n${calls.call[0]}`).addText(call.name);
  for (const [key, value] of Object.entries(call.arguments)) {
    out.add(`\n${calls.name[0]}`).addText(key).add(`${calls.name[1]}\n${calls.value[0]}`);
    out.addText(typeof value === "string" ? value : pythonJson(value, 0)).add(calls.value[1]);
  }
  out.add(`\n${calls.call[1]}`);
}

function refuseMetadata({ metadata }: ChatMessage, index: number): void {
  if (!metadata) return;
  const param = `messages[${index}].metadata`;
  const problem = `${param} has no place in this model's prompt format, expected none`;
  throw new RelayError("invalid_value", problem, { param });
}
