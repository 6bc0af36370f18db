/** POST /tokenize in vLLM's and llama.cpp's dialects, told apart by the field, and POST /detokenize. */
import { RelayError } from "../../common/errors.js";
import type { PromptService } from "../prompt/service.js";
import type { ApiContext, Route } from "./context.js";
import {
  asObject,
  type Body,
  booleanField,
  type Field,
  type Fields,
  invalid,
  readFields,
  readText,
  readTokenIds,
} from "./fields.js";
import { messagesField } from "./messages.js";
import { refuseTools, refuseUnsupported, unsupportedInChat } from "./unsupported.js";

const requiredText: Field<string> = { schema: { type: "string" }, read: readText };

const promptDialect = {
  prompt: requiredText,
  add_special_tokens: booleanField(true),
  return_token_strs: booleanField(false),
} satisfies Fields;

const messagesDialect = {
  messages: messagesField,
  add_generation_prompt: booleanField(true),
  return_token_strs: booleanField(false),
} satisfies Fields;

const contentDialect = {
  content: requiredText,
  add_special: booleanField(false),
  parse_special: booleanField(true),
  with_pieces: booleanField(false),
} satisfies Fields;

export const tokenizeDialects: Fields[] = [promptDialect, messagesDialect, contentDialect];

export const detokenizeFields = {
  tokens: {
    schema: { type: "array", items: { type: "integer", minimum: 0 } },
    read(value: unknown, path: string) {
      if (!Array.isArray(value)) throw invalid(path, value, "a list of token ids");
      return value as unknown[];
    },
  },
} satisfies Fields;

export function tokenizeRoutes({ service }: ApiContext): Route[] {
  const { model, prompt } = service;
  const requireTokenizer = () => {
    if (!prompt.available) throw new RelayError("not_supported", `the model ${model.id} has no tokenizer`);
  };
  const counted = (tokens: number[], withStrings: boolean) => ({
    count: tokens.length,
    max_model_len: model.contextLength,
    tokens,
    ...(withStrings ? { token_strs: prompt.tokenStrings(tokens) } : {}),
  });

  async function tokenize(body: Body) {
    if (body.messages !== undefined) {
      const values = readFields(messagesDialect, body);
      refuseUnsupported(body, unsupportedInChat);
      refuseTools(body);
      requireTokenizer();
      const options = { addGenerationPrompt: values.add_generation_prompt };
      return counted(await prompt.encodeChat(values.messages, options), values.return_token_strs);
    }
    if (body.content !== undefined) {
      const values = readFields(contentDialect, body);
      if (!values.parse_special) {
        throw new RelayError(
          "unsupported_parameter",
          "parse_special: false is not supported, expected true",
          {
            param: "parse_special",
          },
        );
      }
      requireTokenizer();
      const tokens = await prompt.encodeText(values.content, values.add_special);
      return { tokens: values.with_pieces ? pieces(prompt, tokens) : tokens };
    }
    const values = readFields(promptDialect, body);
    requireTokenizer();
    return counted(
      await prompt.encodeText(values.prompt, values.add_special_tokens),
      values.return_token_strs,
    );
  }

  return [
    {
      method: "POST",
      path: "/tokenize",
      summary: "Text or messages to token ids; `prompt` or `messages` as in vLLM, `content` as in llama.cpp.",
      handler: (request) => tokenize(asObject(request.body, "body")),
    },
    {
      method: "POST",
      path: "/detokenize",
      summary: "Token ids to text, under both names that clients look for.",
      handler: async (request) => {
        const { tokens } = readFields(detokenizeFields, asObject(request.body, "body"));
        const ids = readTokenIds(tokens, "tokens", model.tokenCount);
        requireTokenizer();
        const text = await prompt.decode(ids, { skipSpecialTokens: false });
        return { prompt: text, content: text };
      },
    },
  ];
}

/** As llama.cpp writes them: a string, or the bytes of a token that is only part of a character. */
function pieces(prompt: PromptService, tokens: number[]): { id: number; piece: string | number[] }[] {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  return tokens.map((id) => {
    const bytes = prompt.tokenBytes(id);
    try {
      return { id, piece: decoder.decode(bytes) };
    } catch {
      return { id, piece: [...bytes] };
    }
  });
}
