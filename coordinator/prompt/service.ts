/**
 * The prompt service: everything between text and token ids. Encoding and decoding whole texts, and
 * reading large bodies, runs in threads, because it takes longer than the coordinator may stand
 * still; what a single token needs is looked up here, on the main thread.
 */
import { Piscina } from "piscina";
import { RelayError } from "../../common/errors.js";
import type { ModelCard } from "../../models/card.js";
import type { BodyTask, Read } from "../api/read-body.js";
import type { TextParams, TokenIds } from "../inference.js";
import { threadFile } from "../thread-file.js";
import type { ChatMessage, ChatOptions } from "./chat-message.js";
import { type Detokenizer, StreamDetokenizer } from "./detokenizer.js";
import { type ChatFormat, type Encoder, noTokenizer, tokenStrings } from "./encoder.js";
import { replyDetokenizer } from "./reply.js";
import type { PromptTask, TaskResult, ThreadSetup } from "./task.js";
import { TokenTable } from "./token-table.js";

export type { ChatMessage } from "./chat-message.js";
export type { Detokenizer } from "./detokenizer.js";
export type { Encoder } from "./encoder.js";

/** A second thread keeps short prompts moving beside a long one; more would take CPU from workers. */
const maxThreads = 2;
/** Texts waiting for a thread, and the memory that bodies waiting for one may take. */
const maxWaitingTasks = 1024;
const maxWaitingBytes = 256 * 1024 * 1024;

export interface PromptService extends Encoder {
  /**
   * Reads a body in a thread. Its bytes are moved there: the caller's array is empty afterwards.
   * @throws RelayError what is wrong with the body; queue_full, draining
   */
  readBody(body: BodyTask): Promise<Read>;
  /** @param options chatReply drops the whitespace in front of a reply, and replaces what the card says. */
  createDetokenizer(options: TextParams): Detokenizer;
  /** Waiting and running tasks end with `draining`. */
  close(): Promise<void>;
}

/**
 * @returns Once a thread has read the tokenizer, if the directory has one, and checked it.
 * @throws RelayError invalid_model for a tokenizer that is there but broken.
 */
export async function createPromptService(directory: string, card: ModelCard): Promise<PromptService> {
  const service = new ThreadedService({ directory, card });
  try {
    await service.open();
    return service;
  } catch (error) {
    await service.close();
    throw error;
  }
}

class ThreadedService implements PromptService {
  readonly #card: ModelCard;
  #table: TokenTable | null = null;
  #hasTemplate = false;
  readonly #pool: Piscina<PromptTask, TaskResult>;
  /** Of the bodies that wait for a thread or are being read. */
  #waitingBytes = 0;
  #closed = false;

  constructor(workerData: ThreadSetup) {
    this.#card = workerData.card;
    this.#pool = new Piscina<PromptTask, TaskResult>({
      filename: threadFile(import.meta.url, "worker-thread.js"),
      workerData,
      minThreads: 1,
      maxThreads,
      maxQueue: maxWaitingTasks,
      idleTimeout: 30_000,
    });
    // A thread that dies rejects its task and is replaced; nobody else needs to hear of it.
    this.#pool.on("error", () => {});
  }

  async open(): Promise<void> {
    const result = await this.#run({ kind: "open" });
    if (result.kind !== "opened") mismatch(result);
    this.#table = result.table && new TokenTable(result.table);
    this.#hasTemplate = result.hasTemplate;
  }

  get chatFormat(): ChatFormat {
    return { prompt: this.#card.prompt, hasTemplate: this.#hasTemplate };
  }

  get available(): boolean {
    return this.#table !== null;
  }

  encodeText(text: string, addSpecialTokens: boolean): Promise<TokenIds> {
    return this.#encode({ kind: "text", text, addSpecialTokens });
  }

  encodeChat(messages: ChatMessage[], options: ChatOptions = {}): Promise<TokenIds> {
    return this.#encode({ kind: "chat", messages, options });
  }

  async decode(tokens: TokenIds, options: { skipSpecialTokens?: boolean } = {}): Promise<string> {
    if (!this.available) throw noTokenizer();
    const skipSpecialTokens = options.skipSpecialTokens ?? false;
    const result = await this.#run({ kind: "decode", tokens, skipSpecialTokens });
    return result.kind === "text" ? result.text : mismatch(result);
  }

  tokenStrings(tokens: TokenIds): string[] {
    return tokenStrings(this.#table, tokens);
  }

  tokenBytes(token: number): Uint8Array {
    return this.#table?.pieceBytes(token) ?? new Uint8Array();
  }

  async readBody(body: BodyTask): Promise<Read> {
    const { byteLength, buffer } = body.bytes;
    if (this.#waitingBytes + byteLength > maxWaitingBytes) {
      throw new RelayError("queue_full", `${this.#waitingBytes} bytes of requests are waiting to be read`, {
        retryAfterS: 1,
      });
    }
    this.#waitingBytes += byteLength;
    try {
      const result = await this.#run({ kind: "body", body }, [buffer]);
      return result.kind === "body" ? result.read : mismatch(result);
    } finally {
      this.#waitingBytes -= byteLength;
    }
  }

  createDetokenizer(options: TextParams): Detokenizer {
    if (this.#table === null) return { push: () => "", flush: () => "" };
    const plain = new StreamDetokenizer(this.#table, options);
    return options.chatReply ? replyDetokenizer(plain, this.#card) : plain;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#pool.destroy();
  }

  async #encode(task: PromptTask): Promise<TokenIds> {
    if (!this.available) throw noTokenizer();
    const result = await this.#run(task);
    return result.kind === "tokens" ? result.tokens : mismatch(result);
  }

  async #run(task: PromptTask, transferList: ArrayBuffer[] = []): Promise<TaskResult> {
    if (this.#closed) throw new RelayError("draining", "the prompt service is closed");
    if (this.#pool.queueSize >= maxWaitingTasks) {
      throw new RelayError("queue_full", `${maxWaitingTasks} texts are waiting to be encoded`, {
        retryAfterS: 1,
      });
    }
    let result: TaskResult;
    try {
      result = await this.#pool.run(task, { transferList });
    } catch (cause) {
      if (this.#closed) throw new RelayError("draining", "the prompt service was closed", { cause });
      throw new RelayError("internal", "a prompt thread failed", { cause });
    }
    if (result.kind !== "error") return result;
    const { code, message, param, extra } = result;
    throw new RelayError(code, message, param === undefined ? { extra } : { param, extra });
  }
}

function mismatch(result: TaskResult): never {
  throw new Error(`a prompt thread answered with ${result.kind}`);
}
