/** What a chat request asks of the model's prompt format, checked against what that format can hold. */
import { RelayError } from "../../common/errors.js";
import type { TokenIds } from "../inference.js";
import { type ReplyRules, replyRules } from "../output/reply/reply.js";
import type { ChatOptions } from "../prompt/chat-message.js";
import { reservedVariables } from "../prompt/chat-variables.js";
import type { ChatFormat, Encoder } from "../prompt/encoder.js";
import { asObject, type Body, booleanField, type Field, type Fields, show, type Values } from "./fields.js";
import { maxTemplateVariables } from "./limits.js";
import { checkJson, readTools, toolChoiceField, toolSignature, toolsField } from "./tools.js";

/** A tag that opens a thought and the whitespace behind it, where the tag is not a token of its own. */
const tailTokens = 8;

const templateVariablesField: Field<Body> = {
  schema: {
    type: "object",
    properties: { enable_thinking: { type: "boolean" } },
    maxProperties: maxTemplateVariables,
  },
  read(value, path) {
    if (value === undefined || value === null) return {};
    const variables = asObject(value, path);
    for (const name of Object.keys(variables)) {
      if (/^[A-Za-z_]\w{0,63}$/.test(name) && !reservedVariables.has(name)) continue;
      const problem = `${path}: ${show(name)} is not a variable, expected a name that no template has already`;
      throw new RelayError("invalid_value", problem, { param: path });
    }
    if (Object.keys(variables).length > maxTemplateVariables) {
      const problem = `${path}: ${Object.keys(variables).length} variables, expected at most ${maxTemplateVariables}`;
      throw new RelayError("invalid_value", problem, { param: path });
    }
    checkJson(variables, path);
    return variables;
  },
};

/** Shared by chat and /tokenize. */
export const chatOptionFields = {
  add_generation_prompt: booleanField(true),
  tools: toolsField,
  tool_choice: toolChoiceField,
  chat_template_kwargs: templateVariablesField,
} satisfies Fields;

/** @throws RelayError invalid_value; unsupported_parameter for what the format has no place for */
export function chatOptions(values: Values<typeof chatOptionFields>, format: ChatFormat): ChatOptions {
  const path = "chat_template_kwargs";
  const { enable_thinking: thinking, ...templateVariables } = values.chat_template_kwargs;
  const [other] = Object.keys(templateVariables);
  if (other !== undefined && !format.hasTemplate) {
    const param = `${path}.${other}`;
    const problem = `${param}: not supported, the prompts of this model come from no template; expected none`;
    throw new RelayError("unsupported_parameter", problem, { param });
  }
  const options: ChatOptions = {
    addGenerationPrompt: values.add_generation_prompt,
    tools: values.tool_choice ? readTools(values.tools) : [],
  };
  if (other !== undefined) options.templateVariables = templateVariables;
  if (thinking === undefined || thinking === null) return options;
  const param = `${path}.enable_thinking`;
  options.enableThinking = booleanField(true).read(thinking, param);
  if (format.prompt.kind === "turns") return options;
  const problem = `${param}: this model has no thoughts to switch, expected none`;
  throw new RelayError("unsupported_parameter", problem, { param });
}

/** How the reply to the encoded prompt is to be read; null: all of it is content. */
export function replyRulesFor(
  encoder: Encoder,
  { tools = [] }: ChatOptions,
  promptTokens: TokenIds,
): ReplyRules | null {
  const first = Math.max(0, promptTokens.length - tailTokens);
  const last = Array.from({ length: promptTokens.length - first }, (_, i) => promptTokens[first + i]!);
  const tail = encoder.tokenStrings(last).join("");
  return replyRules(encoder.chatFormat.prompt, tools.map(toolSignature), tail);
}
