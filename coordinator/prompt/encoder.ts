/** Text to token ids and back, as whoever reads a request needs it, on either side of a thread. */
import { RelayError } from "../../common/errors.js";
import type { PromptFormat } from "../../models/card.js";
import type { TokenIds } from "../inference.js";
import type { ChatMessage, ChatOptions } from "./chat-message.js";
import type { Tokenizer } from "./tokenizer.js";

/** What the model's conversations can hold. */
export interface ChatFormat {
  prompt: PromptFormat;
  /** The checkpoint's own template makes the prompt, and may know further variables. */
  hasTemplate: boolean;
}

export interface Encoder {
  /** False: the model has no tokenizer; encode* and decode reject with not_supported. */
  readonly available: boolean;
  /** Of a model with a tokenizer. */
  readonly chatFormat: ChatFormat;
  /** @throws RelayError queue_full, draining, not_supported */
  encodeText(text: string, addSpecialTokens: boolean): Promise<TokenIds>;
  /** @throws RelayError invalid_value for messages that the card's format does not know; as encodeText */
  encodeChat(messages: ChatMessage[], options?: ChatOptions): Promise<TokenIds>;
  /** @throws RelayError invalid_value for an id that does not exist; as encodeText */
  decode(tokens: TokenIds, options?: { skipSpecialTokens?: boolean }): Promise<string>;
  /** Each token for people; `token_id:N` without a tokenizer. */
  tokenStrings(tokens: TokenIds): string[];
  /** The token's bytes; none without a tokenizer. */
  tokenBytes(token: number): Uint8Array;
}

/** In the thread that holds the tokenizer: every call is done when it returns. */
export class LocalEncoder implements Encoder {
  readonly tokenizer: Tokenizer | null;

  constructor(tokenizer: Tokenizer | null) {
    this.tokenizer = tokenizer;
  }

  get available(): boolean {
    return this.tokenizer !== null;
  }

  get chatFormat(): ChatFormat {
    return this.#required();
  }

  async encodeText(text: string, addSpecialTokens: boolean): Promise<Int32Array<ArrayBuffer>> {
    return Int32Array.from(this.#required().encodeText(text, { addSpecialTokens }));
  }

  async encodeChat(messages: ChatMessage[], options: ChatOptions = {}): Promise<Int32Array<ArrayBuffer>> {
    return Int32Array.from(this.#required().encodeChat(messages, options));
  }

  async decode(tokens: TokenIds, options: { skipSpecialTokens?: boolean } = {}): Promise<string> {
    return this.#required().decode(tokens, { skipSpecialTokens: options.skipSpecialTokens ?? false });
  }

  tokenStrings(tokens: TokenIds): string[] {
    return tokenStrings(this.tokenizer, tokens);
  }

  tokenBytes(token: number): Uint8Array {
    return this.tokenizer?.pieceBytes(token) ?? new Uint8Array();
  }

  #required(): Tokenizer {
    if (this.tokenizer === null) throw noTokenizer();
    return this.tokenizer;
  }
}

export function tokenStrings(table: { tokenString(id: number): string } | null, tokens: TokenIds): string[] {
  return Array.from(tokens, (token) => table?.tokenString(token) ?? `token_id:${token}`);
}

export function noTokenizer(): RelayError {
  return new RelayError(
    "not_supported",
    "the model has no tokenizer: send the prompt as token ids (/v1/completions)",
  );
}
