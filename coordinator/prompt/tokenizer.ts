/**
 * A model's tokenizer: its file, the special tokens that the card numbers after the file's, and the
 * card's prompt format.
 */
import { readChatTemplate } from "../../checkpoint/chat-template.js";
import { readTokenizerConfig } from "../../checkpoint/config.js";
import {
  addedTokensOf,
  readTokenizerFile,
  requiredTokenId,
  stopTokenIds,
  type TokenizerFile,
} from "../../checkpoint/tokenizer-file.js";
import { RelayError } from "../../common/errors.js";
import type { ModelCard, PromptFormat } from "../../models/card.js";
import { chatParts, checkMessages, inOrderOfCalls, withThoughtsApart } from "./chat-format.js";
import type { ChatMessage, ChatOptions, PromptPart } from "./chat-message.js";
import { ChatTemplate } from "./chat-template.js";
import { decodeTokens } from "./detokenizer.js";
import { fillParts } from "./fill.js";
import { PieceEncoder } from "./piece-encoder.js";
import { namePattern } from "./prompt-parts.js";
import { RankEncoder } from "./rank-encoder.js";
import { TokenTable, tokenTableData } from "./token-table.js";

export type { ChatMessage } from "./chat-message.js";

/**
 * The tokenizer of a model directory, or null when it has none: then only token ids can be served.
 * @throws RelayError invalid_model for a file that is damaged or would encode differently.
 */
export async function openTokenizer(directory: string, card: ModelCard): Promise<Tokenizer | null> {
  const file = await readTokenizerFile(directory, card);
  return file && new Tokenizer(file, card, await openTemplate(directory, file, card));
}

/** The checkpoint's own template, where the card says that it is right. */
async function openTemplate(
  directory: string,
  file: TokenizerFile,
  card: ModelCard,
): Promise<ChatTemplate | null> {
  const { prompt } = card;
  const ownTemplate = prompt.kind === "rounds" ? undefined : prompt.ownTemplate;
  const source = ownTemplate && (await readChatTemplate(directory));
  if (!source) return null;
  const variables: Record<string, string> = {};
  for (const [key, value] of Object.entries((await readTokenizerConfig(directory)) ?? {})) {
    const token = (value as { content?: unknown } | null)?.content ?? value;
    if (/^\w+_token$/.test(key) && typeof token === "string") variables[key] = token;
  }
  const names = addedTokensOf(file, card).map(({ name }) => name);
  return new ChatTemplate(source, { format: { ...prompt, ownTemplate }, names, variables });
}

export class Tokenizer extends TokenTable {
  /** Ids that end a reply. */
  readonly stopTokens: readonly number[];
  readonly #file: TokenizerFile;
  readonly #card: ModelCard;
  readonly #prefix: number[];
  readonly #suffix: number[];
  /** By name, those that were looked up: a text may hold very many masks. */
  readonly #specials = new Map<string, number>();
  readonly #names: RegExp | null;
  readonly #template: ChatTemplate | null;
  /** Built at the first encoding: who only decodes does not pay for it. */
  #encoder: { encode(text: string): number[] } | null = null;

  constructor(file: TokenizerFile, card: ModelCard, template: ChatTemplate | null = null) {
    super(tokenTableData(file, card));
    this.#template = template;
    const names = addedTokensOf(file, card).map(({ name }) => name);
    this.#names = namePattern(names);
    this.#file = file;
    this.#card = card;
    this.stopTokens = stopTokenIds(file, card);
    this.#prefix = card.prompt.prefix.map((name) => this.#special(name));
    this.#suffix = ("suffix" in card.prompt ? (card.prompt.suffix ?? []) : []).map((name) =>
      this.#special(name),
    );
  }

  /**
   * Names of special tokens in the text stay text: nobody can forge a turn by writing one. Only a family
   * that fills blanks reads the names of its masks, and only with its special tokens around the text.
   */
  encodeText(text: string, options: { addSpecialTokens: boolean }): number[] {
    if (!options.addSpecialTokens) return this.#encode(text);
    const { fill } = this.#card.tokenizer;
    if (fill) return [this.#prefix, ...this.#encodeParts(fillParts(text, fill))].flat();
    return [this.#prefix, this.#encode(text), this.#suffix].flat();
  }

  get prompt(): PromptFormat {
    return this.#card.prompt;
  }

  /** Whether the checkpoint's own template makes its prompts. */
  get hasTemplate(): boolean {
    return this.#template !== null;
  }

  /**
   * The card's chat format, or the checkpoint's own template: each text between special tokens encoded on
   * its own.
   * @throws RelayError invalid_value for messages that the format has no place for.
   */
  encodeChat(messages: ChatMessage[], options: ChatOptions = {}): number[] {
    const { prompt } = this.#card;
    const turns = inOrderOfCalls(withThoughtsApart(messages, prompt, this.hasTemplate));
    if (this.#template) {
      checkMessages(turns, prompt, options);
      return this.#encodeParts(this.#template.parts(turns, options)).flat();
    }
    const parts = chatParts(turns, prompt, options, this.#names);
    return [this.#prefix, ...this.#encodeParts(parts), this.#suffix].flat();
  }

  decode(ids: Iterable<number>, options: { skipSpecialTokens: boolean }): string {
    return decodeTokens(this, ids, options);
  }

  /**
   * Encodes what is known to encode and decodes it again: a file can be well-formed and still useless.
   * @throws RelayError invalid_model
   */
  selfCheck(): void {
    this.#checkTemplate();
    const text = this.#sample();
    const ids = this.#encode(text);
    const decoded = this.decode(ids, { skipSpecialTokens: true });
    if (decoded !== text || (text !== "" && ids.length === 0)) {
      throw new RelayError(
        "invalid_model",
        `${this.#file.path}: "${text}" encodes to [${ids.join(", ")}] and decodes to "${decoded}", expected the same text`,
      );
    }
  }

  /** A text that the file can encode without loss. */
  #sample(): string {
    const sample = "Hello, 你好 1";
    if (this.#file.kind === "tiktoken") return sample;
    const { pieces, byteFallback, characterMap } = this.#file;
    const known = new Set(pieces.flatMap((piece) => (piece.type === "normal" ? [piece.text] : [])));
    const left = [...sample].filter(
      (c) => (byteFallback || known.has(c === " " ? "\u2581" : c)) && !characterMap?.match(c, 0),
    );
    const [anyPiece = ""] = known;
    return (left.join("") || anyPiece.replaceAll("\u2581", " ")).replaceAll(/ +/g, " ").trim();
  }

  #encodeParts(parts: PromptPart[]): number[][] {
    return parts.map((part) => ("text" in part ? this.#encode(part.text) : [this.#special(part.token)]));
  }

  #special(name: string): number {
    const id = this.#specials.get(name) ?? requiredTokenId(this.#file, this.#card, name);
    this.#specials.set(name, id);
    return id;
  }

  #encode(text: string): number[] {
    this.#encoder ??= newEncoder(this.#file, this.#card);
    return this.#encoder.encode(text);
  }

  /** A template can be well-formed and still ask for what is not there. */
  #checkTemplate(): void {
    if (this.#template === null) return;
    try {
      this.#template.parts([{ role: "user", content: "Hello" }], {});
    } catch (cause) {
      const { message } = cause as Error;
      throw new RelayError("invalid_model", `${this.#template.path}: for a question, ${message}`, { cause });
    }
  }
}

function newEncoder(file: TokenizerFile, { tokenizer }: ModelCard): { encode(text: string): number[] } {
  if (file.kind === "sentencepiece" && tokenizer.kind === "sentencepiece") {
    return new PieceEncoder(file, tokenizer);
  }
  if (file.kind === "tiktoken" && tokenizer.kind !== "sentencepiece") {
    return new RankEncoder(file.tokens, tokenizer.pattern);
  }
  throw new Error(`a card of ${tokenizer.kind} with a file of ${file.kind}`);
}
