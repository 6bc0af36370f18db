/** The `messages` of a chat request: roles, content as a string or as text parts, thoughts and calls. */
import { RelayError } from "../../common/errors.js";
import type { ChatMessage } from "../prompt/chat-message.js";
import { asObject, type Field, invalid, readText, show } from "./fields.js";
import { maxMessages } from "./limits.js";
import { readToolCalls, toolCallsSchema } from "./tools.js";

const roles = ["system", "developer", "user", "assistant", "tool", "function", "observation"];

export const messagesField: Field<ChatMessage[]> = {
  schema: {
    type: "array",
    minItems: 1,
    maxItems: maxMessages,
    items: {
      type: "object",
      required: ["role"],
      properties: {
        role: { type: "string", enum: roles },
        content: {
          oneOf: [
            { type: "string" },
            { type: "null" },
            {
              type: "array",
              items: {
                type: "object",
                required: ["type", "text"],
                properties: { type: { const: "text" }, text: { type: "string" } },
              },
            },
          ],
        },
        metadata: { type: "string" },
        reasoning_content: { type: ["string", "null"] },
        tool_calls: toolCallsSchema,
        tool_call_id: { type: "string" },
        name: { type: "string" },
      },
    },
  },
  read(value, path) {
    if (!Array.isArray(value) || value.length === 0 || value.length > maxMessages) {
      throw invalid(path, value, `a list of 1 to ${maxMessages} messages`);
    }
    return value.map((message, i) => readMessage(message, `${path}[${i}]`));
  },
};

function readMessage(value: unknown, path: string): ChatMessage {
  const message = asObject(value, path);
  const { role } = message;
  if (typeof role !== "string" || !roles.includes(role)) {
    const found = role === undefined ? "missing" : `${show(role)} is not a role`;
    throw new RelayError("invalid_value", `${path}.role: ${found}, expected ${roles.join(", ")}`, {
      param: `${path}.role`,
    });
  }
  if (message.function_call !== undefined && message.function_call !== null) {
    const param = `${path}.function_call`;
    const problem = `${param}: not supported, expected "tool_calls"`;
    throw new RelayError("unsupported_parameter", problem, { param });
  }
  const read: ChatMessage = { role, content: "" };
  for (const [member, name] of textMembers) {
    const value = message[name];
    if (value !== undefined && value !== null) read[member] = readText(value, `${path}.${name}`);
  }
  if (role === "assistant") {
    const calls = message.tool_calls ?? [];
    if (!Array.isArray(calls) || calls.length > 0)
      read.toolCalls = readToolCalls(calls, `${path}.tool_calls`);
  } else {
    delete read.reasoning;
    refuseCalls(message.tool_calls, role, path);
  }
  const saysOtherwise = read.toolCalls !== undefined || read.reasoning !== undefined;
  const { content } = message;
  if (!saysOtherwise || (content !== undefined && content !== null)) {
    read.content = readContent(content, `${path}.content`);
  }
  return read;
}

/** vLLM's name for a thought is older; where both stand the other one counts. */
const textMembers = [
  ["metadata", "metadata"],
  ["reasoning", "reasoning"],
  ["reasoning", "reasoning_content"],
  ["toolCallId", "tool_call_id"],
  ["name", "name"],
] as const;

function refuseCalls(calls: unknown, role: string, path: string): void {
  if (calls === undefined || calls === null || (Array.isArray(calls) && calls.length === 0)) return;
  const param = `${path}.tool_calls`;
  throw new RelayError("invalid_value", `${param}: given for the role "${role}", expected "assistant"`, {
    param,
  });
}

/** Parts are joined as they are: a separator would be text that the client did not write. */
function readContent(value: unknown, path: string): string {
  if (typeof value === "string") return readText(value, path);
  if (!Array.isArray(value) || value.length === 0) throw invalid(path, value, "a string or text parts");
  return value
    .map((entry, i) => {
      const partPath = `${path}[${i}]`;
      const part = asObject(entry, partPath);
      if (part.type !== "text") {
        throw new RelayError(
          "invalid_value",
          `${partPath}.type: ${part.type === undefined ? "missing" : show(part.type)} is not a part ` +
            'that this model reads, expected "text"',
          { param: `${partPath}.type` },
        );
      }
      return readText(part.text, `${partPath}.text`);
    })
    .join("");
}
