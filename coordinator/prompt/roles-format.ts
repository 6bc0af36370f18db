/** Conversations in which a special token per role opens a turn: ChatGLM3 and GLM-4. */
import { RelayError } from "../../common/errors.js";
import type { PythonCalls, RolesPrompt } from "../../models/card.js";
import type { ChatMessage, ChatOptions, PromptPart, ToolCall } from "./chat-message.js";
import { toolsPieces } from "./prompt-parts.js";
import { pythonLiteral } from "./python-text.js";

/** Per turn the role's token, the metadata line and the content; then the token that asks for a reply. */
export function rolesParts(
  messages: ChatMessage[],
  format: RolesPrompt,
  { addGenerationPrompt = true, tools = [] }: ChatOptions,
): PromptPart[] {
  const parts: PromptPart[] = [];
  const turn = (role: string, metadata: string, content: string) => {
    parts.push({ token: format.roles[role]! });
    if (format.metadataLine === "joined") parts.push({ text: `${metadata}\n${content}` });
    else parts.push({ text: `${metadata}\n` }, { text: content });
  };
  if (tools.length > 0) turn("system", "", toolsPieces(format.tools, tools).join(""));
  for (const [index, message] of messages.entries()) {
    const { role, content, metadata = "", toolCalls = [] } = message;
    if (index > 0 && format.firstOnlyRoles.includes(role)) refuseLateRole(role, index);
    if (content !== "" || toolCalls.length === 0) turn(role, metadata, content);
    for (const { name, text } of callTurns(toolCalls, format)) turn(role, name, text);
  }
  if (addGenerationPrompt) parts.push({ token: format.generation });
  return parts;
}

/** Each call is a turn: the tool's name on the metadata line, and what it is to do. */
export function callTurns(toolCalls: ToolCall[], { calls }: RolesPrompt): { name: string; text: string }[] {
  return toolCalls.map((call) => ({
    name: call.name,
    text: calls.kind === "json" ? call.argumentsText : `\`\`\`python\n${pythonCall(call, calls)}\n\`\`\``,
  }));
}

function pythonCall({ name, arguments: given }: ToolCall, { callee, code }: PythonCalls): string {
  const source = given[code.argument];
  if (name === code.tool && typeof source === "string") return source;
  const list = Object.entries(given).map(([key, value]) => `${key}=${pythonLiteral(value)}`);
  return `${callee}(${list.join(", ")})`;
}

export function refuseLateRole(role: string, index: number): never {
  const param = `messages[${index}].role`;
  const problem = `${param} is "${role}", which is only allowed as the first message`;
  throw new RelayError("invalid_value", problem, { param });
}
