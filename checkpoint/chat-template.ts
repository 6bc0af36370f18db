/**
 * The chat template of a model directory, as text: chat_template.jinja, or what tokenizer_config.json or
 * chat_template.json hold under "chat_template", in the order in which the transformers package looks.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { readTokenizerConfig } from "./config.js";
import { isObject, parseJsonObject, readModelFile } from "./json.js";

/** The longest published template of a GLM has 10 KB. */
const maxTemplateBytes = 256 * 1024;
/** "default" and "tool_use" are known. */
const maxTemplates = 16;

export interface ChatTemplateSource {
  /** The file, for messages. */
  path: string;
  text: string;
  /** Used where tools are given; null: `text` is. */
  toolsText: string | null;
}

/** null when the directory has no template. @throws RelayError invalid_model */
export async function readChatTemplate(directory: string): Promise<ChatTemplateSource | null> {
  const jinja = join(directory, "chat_template.jinja");
  if (existsSync(jinja)) {
    const bytes = await readModelFile(jinja, maxTemplateBytes);
    return { path: jinja, text: utf8(bytes, jinja), toolsText: null };
  }
  const config = await readTokenizerConfig(directory);
  if (config?.chat_template !== undefined && config.chat_template !== null) {
    return fromValue(config.chat_template, join(directory, "tokenizer_config.json"));
  }
  const json = join(directory, "chat_template.json");
  if (!existsSync(json)) return null;
  return fromValue(parseJsonObject(await readModelFile(json, maxTemplateBytes), json).chat_template, json);
}

function fromValue(value: unknown, path: string): ChatTemplateSource {
  if (typeof value === "string") return { path, text: checkedLength(value, path), toolsText: null };
  const entries = Array.isArray(value) && value.length <= maxTemplates ? (value as unknown[]) : [];
  const named = new Map<unknown, string>();
  for (const entry of entries) {
    if (isObject(entry) && typeof entry.template === "string") named.set(entry.name, entry.template);
  }
  const text = named.get("default");
  if (text === undefined) {
    throw new RelayError(
      "invalid_model",
      `${path}: "chat_template" is ${printValue(value)}, expected a template or a list of ` +
        '{"name", "template"} with one named "default"',
    );
  }
  const toolsText = named.get("tool_use");
  return {
    path,
    text: checkedLength(text, path),
    toolsText: toolsText === undefined ? null : checkedLength(toolsText, path),
  };
}

function checkedLength(text: string, path: string): string {
  if (text.length <= maxTemplateBytes) return text;
  throw new RelayError(
    "invalid_model",
    `${path}: "chat_template" has ${text.length} characters, expected at most ${maxTemplateBytes}`,
  );
}

function utf8(bytes: Uint8Array, path: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new RelayError("invalid_model", `${path} is not UTF-8`, { cause });
  }
}
