/** The fields of a chat request that concern tools, and the JSON in them. */
import { RelayError } from "../../common/errors.js";
import type { ToolSignature } from "../output/reply/reply.js";
import type { Tool, ToolCall } from "../prompt/chat-message.js";
import { asObject, type Body, type Field, invalid, readText, show } from "./fields.js";
import { maxJsonDepth, maxToolCalls, maxToolNameLength, maxTools } from "./limits.js";

const functionSchema = {
  type: "object",
  required: ["name"],
  properties: {
    name: { type: "string", maxLength: maxToolNameLength },
    description: { type: "string" },
    parameters: { type: "object" },
  },
};

/** Read only where tools are asked for: see readTools. */
export const toolsField: Field<readonly unknown[]> = {
  schema: {
    type: "array",
    maxItems: maxTools,
    items: {
      type: "object",
      required: ["type", "function"],
      properties: { type: { const: "function" }, function: functionSchema },
    },
  },
  read(value, path) {
    if (value === undefined || value === null) return [];
    if (!Array.isArray(value) || value.length > maxTools) {
      throw invalid(path, value, `a list of at most ${maxTools} tools`);
    }
    return value as unknown[];
  },
};

/** Whether the model may call tools. It cannot be made to: nothing constrains what it writes. */
export const toolChoiceField: Field<boolean> = {
  schema: { type: "string", enum: ["none", "auto"], default: "auto" },
  read(value, path) {
    if (value === undefined || value === null || value === "auto") return true;
    if (value === "none") return false;
    throw new RelayError(
      "unsupported_parameter",
      `${path}: ${show(value)} is not supported, expected "none" or "auto"`,
      { param: path },
    );
  },
};

/** @throws RelayError invalid_value */
export function readTools(list: readonly unknown[]): Tool[] {
  const names = new Set<string>();
  return list.map((value, index) => {
    const path = `tools[${index}]`;
    const tool = asObject(value, path);
    if (tool.type !== "function") {
      const found = tool.type === undefined ? "missing" : `${show(tool.type)} is not supported`;
      throw new RelayError("invalid_value", `${path}.type: ${found}, expected "function"`, {
        param: `${path}.type`,
      });
    }
    const { strict: _, ...described } = asObject(tool.function, `${path}.function`);
    const name = readToolName(described.name, `${path}.function.name`);
    if (names.has(name)) {
      const param = `${path}.function.name`;
      throw new RelayError("invalid_value", `${param}: ${show(name)} is there twice, expected another name`, {
        param,
      });
    }
    names.add(name);
    const { description, parameters } = described;
    if (description !== undefined && description !== null)
      readText(description, `${path}.function.description`);
    if (parameters !== undefined && parameters !== null) asObject(parameters, `${path}.function.parameters`);
    checkJson(tool, path);
    return { ...tool, type: "function", function: { ...described, name } };
  });
}

export function toolSignature({ function: { name, parameters } }: Tool): ToolSignature {
  const { properties } = (parameters ?? {}) as Body;
  const texts: string[] = [];
  const nullable: string[] = [];
  const isObject = typeof properties === "object" && properties !== null;
  for (const [argument, schema] of isObject ? Object.entries(properties as Body) : []) {
    const types = typesOf(schema);
    if (!types.has("string")) continue;
    texts.push(argument);
    if (types.has("null")) nullable.push(argument);
  }
  return { name, texts, nullable };
}

/** What JSON Schema lets a value be, as far as it says so plainly: `type`, `enum`, and a choice of such. */
function typesOf(schema: unknown): Set<unknown> {
  const { type, enum: values, anyOf, oneOf } = (schema ?? {}) as Body;
  const listed = Array.isArray(values)
    ? (values as unknown[]).map((value) => (value === null ? "null" : typeof value))
    : [];
  const choices = [anyOf, oneOf].flatMap((list) => (Array.isArray(list) ? (list as Body[]) : []));
  const types = [type].flat() as unknown[];
  return new Set([
    ...(types[0] === undefined ? listed : types),
    ...choices.flatMap((choice) => [(choice as Body | null)?.type].flat() as unknown[]),
  ]);
}

export const toolCallsSchema = {
  type: "array",
  maxItems: maxToolCalls,
  items: {
    type: "object",
    required: ["id", "function"],
    properties: {
      id: { type: "string" },
      type: { const: "function" },
      function: {
        type: "object",
        required: ["name", "arguments"],
        properties: { name: { type: "string" }, arguments: { type: "string" } },
      },
    },
  },
};

/** The calls of an assistant's message, as a reply gave them. @throws RelayError invalid_value */
export function readToolCalls(value: unknown, path: string): ToolCall[] {
  if (!Array.isArray(value) || value.length > maxToolCalls) {
    throw invalid(path, value, `a list of at most ${maxToolCalls} calls`);
  }
  return value.map((entry, index) => {
    const callPath = `${path}[${index}]`;
    const call = asObject(entry, callPath);
    if (call.type !== undefined && call.type !== "function") {
      throw new RelayError(
        "invalid_value",
        `${callPath}.type: ${show(call.type)} is not supported, expected "function"`,
        { param: `${callPath}.type` },
      );
    }
    const called = asObject(call.function, `${callPath}.function`);
    const argumentsPath = `${callPath}.function.arguments`;
    return {
      id: readText(call.id, `${callPath}.id`),
      name: readToolName(called.name, `${callPath}.function.name`),
      ...readArguments(called.arguments, argumentsPath),
    };
  });
}

/** A string of JSON as at OpenAI; the object itself is taken too. An empty string means no arguments. */
function readArguments(value: unknown, path: string): Pick<ToolCall, "arguments" | "argumentsText"> {
  if (typeof value === "object" && value !== null) {
    const given = asObject(value, path);
    checkJson(given, path);
    return { arguments: given, argumentsText: JSON.stringify(given) };
  }
  const text = readText(value, path).trim() || "{}";
  const expected = "a JSON object as a string";
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new RelayError("invalid_value", `${path}: ${show(text)} is not JSON, expected ${expected}`, {
      param: path,
    });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new RelayError("invalid_value", `${path}: ${show(text)} is no object, expected ${expected}`, {
      param: path,
    });
  }
  checkJson(parsed, path);
  return { arguments: parsed as Body, argumentsText: text };
}

/** Models read and write names on a line of their own. */
function readToolName(value: unknown, path: string): string {
  const name = readText(value, path);
  if (/^[\p{L}\p{N}_.-]+$/u.test(name) && name.length <= maxToolNameLength) return name;
  throw new RelayError(
    "invalid_value",
    `${path}: ${show(name)} is not a name, expected 1 to ${maxToolNameLength} letters, digits, "_", "-" and "."`,
    { param: path },
  );
}

/** Every text is Unicode, and nothing is nested deeper than whoever writes it out can follow. */
export function checkJson(value: unknown, path: string, depth = 0): void {
  if (typeof value === "string") readText(value, path);
  if (typeof value !== "object" || value === null) return;
  if (depth >= maxJsonDepth) {
    throw new RelayError(
      "invalid_value",
      `${path}: nested deeper than ${maxJsonDepth} levels, expected less`,
      {
        param: path,
      },
    );
  }
  for (const [key, member] of Object.entries(value)) {
    readText(key, path);
    checkJson(member, path, depth + 1);
  }
}
