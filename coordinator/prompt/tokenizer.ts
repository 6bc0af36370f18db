/**
 * A model's tokenizer: the SentencePiece file, the special tokens that the card numbers after its
 * pieces, and the card's prompt format.
 */
import {
  readSentencePiece,
  type SentencePieceFile,
  specialTokenId,
  stopTokenIds,
} from "../../checkpoint/sentencepiece.js";
import { RelayError } from "../../common/errors.js";
import type { ModelCard } from "../../models/card.js";
import { BpeEncoder } from "./bpe.js";
import { decodeTokens } from "./detokenizer.js";
import { TokenTable, tokenTableData } from "./token-table.js";

export interface ChatMessage {
  role: string;
  content: string;
  /** Goes onto the line of the role (ChatGLM3: the tool's name); usually empty. */
  metadata?: string;
}

/**
 * The tokenizer of a model directory, or null when it has none: then only token ids can be served.
 * @throws RelayError invalid_model for a file that is damaged or would encode differently.
 */
export async function openTokenizer(directory: string, card: ModelCard): Promise<Tokenizer | null> {
  const file = await readSentencePiece(directory, card.tokenizer.file);
  return file && new Tokenizer(file, card);
}

export class Tokenizer extends TokenTable {
  /** Ids that end a reply. */
  readonly stopTokens: readonly number[];
  readonly #file: SentencePieceFile;
  readonly #card: ModelCard;
  readonly #prefix: number[];
  /** Built at the first encoding: who only decodes does not pay for it. */
  #encoder: BpeEncoder | null = null;

  constructor(file: SentencePieceFile, card: ModelCard) {
    super(tokenTableData(file, card));
    this.#file = file;
    this.#card = card;
    this.stopTokens = stopTokenIds(file, card);
    this.#prefix = card.prompt.prefix.map((name) => specialTokenId(file, card, name));
  }

  /** Names of special tokens in the text stay text: nobody can forge a turn by writing one. */
  encodeText(text: string, options: { addSpecialTokens: boolean }): number[] {
    const ids = this.#encode(text);
    return options.addSpecialTokens ? this.#prefix.concat(ids) : ids;
  }

  /**
   * The card's chat format: per message the role's token, the metadata line and the content, the last
   * two encoded separately; then the token that asks for a reply.
   * @throws RelayError invalid_value for no messages, an unknown role or one out of place.
   */
  encodeChat(messages: ChatMessage[], options: { addGenerationPrompt?: boolean } = {}): number[] {
    const { prompt } = this.#card;
    checkMessages(messages, this.#card);
    const ids = [this.#prefix];
    for (const { role, content, metadata } of messages) {
      ids.push([this.#special(prompt.roles[role]!)]);
      if (prompt.metadataLine) ids.push(this.#encode(`${metadata ?? ""}\n`));
      ids.push(this.#encode(content));
    }
    if (options.addGenerationPrompt ?? true) ids.push([this.#special(prompt.generation)]);
    return ids.flat();
  }

  decode(ids: Iterable<number>, options: { skipSpecialTokens: boolean }): string {
    return decodeTokens(this, ids, options);
  }

  /**
   * Encodes what is known to encode and decodes it again: a file can be well-formed and still useless.
   * @throws RelayError invalid_model
   */
  selfCheck(): void {
    const { pieces, byteFallback, path } = this.#file;
    const known = new Set(pieces.flatMap((piece) => (piece.type === "normal" ? [piece.text] : [])));
    const sample = [..."Hello, 你好 1"].filter((c) => byteFallback || known.has(c === " " ? "\u2581" : c));
    const [anyPiece = ""] = known;
    const text = (sample.join("") || anyPiece.replaceAll("\u2581", " ")).trim();
    const ids = this.#encode(text);
    const decoded = this.decode(ids, { skipSpecialTokens: true });
    if (decoded !== text || (text !== "" && ids.length === 0)) {
      throw new RelayError(
        "invalid_model",
        `${path}: "${text}" encodes to [${ids.join(", ")}] and decodes to "${decoded}", expected the same text`,
      );
    }
  }

  #encode(text: string): number[] {
    this.#encoder ??= new BpeEncoder(this.#file);
    return this.#encoder.encode(text);
  }

  #special(name: string): number {
    return specialTokenId(this.#file, this.#card, name);
  }
}

function checkMessages(messages: ChatMessage[], card: ModelCard): void {
  const refuse = (problem: string, param: string): never => {
    throw new RelayError("invalid_value", problem, { param });
  };
  if (messages.length === 0) refuse("messages is empty, expected at least one message", "messages");
  const { roles, firstOnlyRoles } = card.prompt;
  for (const [index, { role }] of messages.entries()) {
    const param = `messages[${index}].role`;
    if (!Object.hasOwn(roles, role)) {
      refuse(`${param} is "${role}", expected one of ${Object.keys(roles).join(", ")}`, param);
    }
    if (index > 0 && firstOnlyRoles.includes(role)) {
      refuse(`${param} is "${role}", which is only allowed as the first message`, param);
    }
  }
}
