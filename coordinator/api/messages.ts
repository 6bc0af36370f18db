/** The `messages` of a chat request: roles, and content as a string or as text parts. */
import { RelayError } from "../../common/errors.js";
import type { ChatMessage } from "../prompt/service.js";
import { asObject, type Field, invalid, readText, show } from "./fields.js";
import { maxMessages } from "./limits.js";

const roles = ["system", "developer", "user", "assistant", "tool", "function", "observation"];

export const messagesField: Field<ChatMessage[]> = {
  schema: {
    type: "array",
    minItems: 1,
    maxItems: maxMessages,
    items: {
      type: "object",
      required: ["role", "content"],
      properties: {
        role: { type: "string", enum: roles },
        content: {
          oneOf: [
            { type: "string" },
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
  const { role, metadata } = message;
  if (typeof role !== "string" || !roles.includes(role)) {
    const found = role === undefined ? "missing" : `${show(role)} is not a role`;
    throw new RelayError("invalid_value", `${path}.role: ${found}, expected ${roles.join(", ")}`, {
      param: `${path}.role`,
    });
  }
  for (const name of ["tool_calls", "function_call"]) {
    const calls = message[name];
    if (calls === undefined || calls === null || (Array.isArray(calls) && calls.length === 0)) continue;
    throw new RelayError(
      "unsupported_parameter",
      `${path}.${name}: tool calls are not supported, expected none`,
      {
        param: `${path}.${name}`,
      },
    );
  }
  const content = readContent(message.content, `${path}.content`);
  if (metadata === undefined || metadata === null) return { role, content };
  return { role, content, metadata: readText(metadata, `${path}.metadata`) };
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
