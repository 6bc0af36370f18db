/**
 * The bodies of POST /tokenize, in vLLM's and llama.cpp's dialects, told apart by the field, and of POST
 * /detokenize. Their answers are written here too, in the thread that made them.
 */
import { RelayError } from "../../common/errors.js";
import type { TokenIds } from "../inference.js";
import type { Encoder } from "../prompt/encoder.js";
import { chatOptionFields, chatOptions } from "./chat-options.js";
import {
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
import type { ReadContext } from "./read-body.js";
import { refuseUnsupported, unsupportedInChat } from "./unsupported.js";

const requiredText: Field<string> = { schema: { type: "string" }, read: readText };

const promptDialect = {
  prompt: requiredText,
  add_special_tokens: booleanField(true),
  return_token_strs: booleanField(false),
} satisfies Fields;

const messagesDialect = {
  messages: messagesField,
  ...chatOptionFields,
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

/** @returns The answer as JSON in UTF-8. */
export async function tokenize(body: Body, context: ReadContext): Promise<Uint8Array<ArrayBuffer>> {
  const { encoder } = context;
  if (body.messages !== undefined) {
    const values = readFields(messagesDialect, body);
    refuseUnsupported(body, unsupportedInChat);
    requireTokenizer(context);
    const options = chatOptions(values, encoder.chatFormat);
    return counted(context, await encoder.encodeChat(values.messages, options), values.return_token_strs);
  }
  if (body.content !== undefined) {
    const values = readFields(contentDialect, body);
    if (!values.parse_special) {
      throw new RelayError("unsupported_parameter", "parse_special: false is not supported, expected true", {
        param: "parse_special",
      });
    }
    requireTokenizer(context);
    const tokens = await encoder.encodeText(values.content, values.add_special);
    return json({ tokens: values.with_pieces ? pieces(encoder, tokens) : Array.from(tokens) });
  }
  const values = readFields(promptDialect, body);
  requireTokenizer(context);
  const tokens = await encoder.encodeText(values.prompt, values.add_special_tokens);
  return counted(context, tokens, values.return_token_strs);
}

/** @returns The answer as JSON in UTF-8. */
export async function detokenize(body: Body, context: ReadContext): Promise<Uint8Array<ArrayBuffer>> {
  const { tokens } = readFields(detokenizeFields, body);
  const ids = readTokenIds(tokens, "tokens", context.model.tokenCount);
  requireTokenizer(context);
  const text = await context.encoder.decode(ids, { skipSpecialTokens: false });
  return json({ prompt: text, content: text });
}

function requireTokenizer({ model, encoder }: ReadContext): void {
  if (!encoder.available) throw new RelayError("not_supported", `the model ${model.id} has no tokenizer`);
}

function counted({ model, encoder }: ReadContext, tokens: TokenIds, withStrings: boolean) {
  return json({
    count: tokens.length,
    max_model_len: model.contextLength,
    tokens: Array.from(tokens),
    ...(withStrings ? { token_strs: encoder.tokenStrings(tokens) } : {}),
  });
}

/** As llama.cpp writes them: a string, or the bytes of a token that is only part of a character. */
function pieces(encoder: Encoder, tokens: TokenIds): { id: number; piece: string | number[] }[] {
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  return Array.from(tokens, (id) => {
    const bytes = encoder.tokenBytes(id);
    try {
      return { id, piece: decoder.decode(bytes) };
    } catch {
      return { id, piece: [...bytes] };
    }
  });
}

/** In memory of its own, which can move to another thread. */
function json(answer: object): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(JSON.stringify(answer));
}
