/**
 * The prompt service: everything between text and token ids. Encoding and decoding whole texts runs
 * in threads, because a long prompt takes longer than the coordinator may stand still; what a single
 * token needs is looked up here, on the main thread.
 */
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { Piscina } from "piscina";
import { RelayError } from "../../common/errors.js";
import { packageRoot } from "../../common/package.js";
import type { ModelCard } from "../../models/card.js";
import { type Detokenizer, ReplyTrimmer, StreamDetokenizer } from "./detokenizer.js";
import type { PromptTask, TaskResult, ThreadSetup } from "./task.js";
import { type ChatMessage, openTokenizer, type Tokenizer } from "./tokenizer.js";

export type { Detokenizer } from "./detokenizer.js";
export type { ChatMessage } from "./tokenizer.js";

/** A second thread keeps short prompts moving beside a long one; more would take CPU from workers. */
const maxThreads = 2;
/** Texts waiting for a thread; each is already in memory, within the API's limit on a request. */
const maxWaitingTasks = 1024;

export interface PromptService {
  /** False: the model has no tokenizer; encode* and decode reject with not_supported. */
  readonly available: boolean;
  /** @throws RelayError queue_full, draining, not_supported */
  encodeText(text: string, addSpecialTokens: boolean): Promise<number[]>;
  /** @throws RelayError invalid_value for messages that the card's format does not know; as encodeText */
  encodeChat(messages: ChatMessage[], options?: { addGenerationPrompt?: boolean }): Promise<number[]>;
  /** @throws RelayError invalid_value for an id that does not exist; as encodeText */
  decode(tokens: number[], options?: { skipSpecialTokens?: boolean }): Promise<string>;
  /** Each token for people; `token_id:N` without a tokenizer. */
  tokenStrings(tokens: number[]): string[];
  /** The token's bytes; none without a tokenizer. */
  tokenBytes(token: number): Uint8Array;
  /** @param options chatReply drops the whitespace in front of a reply. */
  createDetokenizer(options: { skipSpecialTokens: boolean; chatReply: boolean }): Detokenizer;
  /** Waiting and running tasks end with `draining`. */
  close(): Promise<void>;
}

/**
 * @returns Once a thread has read the tokenizer and checked it.
 * @throws RelayError invalid_model for a tokenizer that is there but broken.
 */
export async function createPromptService(directory: string, card: ModelCard): Promise<PromptService> {
  const tokenizer = await openTokenizer(directory, card);
  if (!tokenizer) return new TokenIdService();
  const service = new ThreadedService(tokenizer, { directory, card });
  try {
    await service.check();
  } catch (error) {
    await service.close();
    throw error;
  }
  return service;
}

class ThreadedService implements PromptService {
  readonly available = true;
  readonly #tokenizer: Tokenizer;
  readonly #pool: Piscina<PromptTask, TaskResult>;
  #closed = false;

  constructor(tokenizer: Tokenizer, workerData: ThreadSetup) {
    this.#tokenizer = tokenizer;
    this.#pool = new Piscina<PromptTask, TaskResult>({
      filename: threadFile(),
      workerData,
      minThreads: 1,
      maxThreads,
      maxQueue: maxWaitingTasks,
      idleTimeout: 30_000,
    });
    // A thread that dies rejects its task and is replaced; nobody else needs to hear of it.
    this.#pool.on("error", () => {});
  }

  async check(): Promise<void> {
    await this.#run({ kind: "check" });
  }

  encodeText(text: string, addSpecialTokens: boolean): Promise<number[]> {
    return this.#encode({ kind: "text", text, addSpecialTokens });
  }

  encodeChat(messages: ChatMessage[], options: { addGenerationPrompt?: boolean } = {}): Promise<number[]> {
    return this.#encode({ kind: "chat", messages, addGenerationPrompt: options.addGenerationPrompt ?? true });
  }

  async decode(tokens: number[], options: { skipSpecialTokens?: boolean } = {}): Promise<string> {
    const skipSpecialTokens = options.skipSpecialTokens ?? false;
    const result = await this.#run({ kind: "decode", tokens, skipSpecialTokens });
    return result.kind === "text" ? result.text : mismatch(result);
  }

  tokenStrings(tokens: number[]): string[] {
    return tokens.map((token) => this.#tokenizer.tokenString(token));
  }

  tokenBytes(token: number): Uint8Array {
    return this.#tokenizer.pieceBytes(token);
  }

  createDetokenizer(options: { skipSpecialTokens: boolean; chatReply: boolean }): Detokenizer {
    const plain = new StreamDetokenizer(this.#tokenizer, options);
    return options.chatReply ? new ReplyTrimmer(plain) : plain;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#pool.destroy();
  }

  async #encode(task: PromptTask): Promise<number[]> {
    const result = await this.#run(task);
    return result.kind === "tokens" ? Array.from(result.tokens) : mismatch(result);
  }

  async #run(task: PromptTask): Promise<TaskResult> {
    if (this.#closed) throw new RelayError("draining", "the prompt service is closed");
    if (this.#pool.queueSize >= maxWaitingTasks) {
      throw new RelayError("queue_full", `${maxWaitingTasks} texts are waiting to be encoded`, {
        retryAfterS: 1,
      });
    }
    let result: TaskResult;
    try {
      result = await this.#pool.run(task);
    } catch (cause) {
      if (this.#closed) throw new RelayError("draining", "the prompt service was closed", { cause });
      throw new RelayError("internal", `a prompt thread failed: ${(cause as Error).message}`, { cause });
    }
    if (result.kind !== "error") return result;
    throw new RelayError(
      result.code,
      result.message,
      result.param === undefined ? {} : { param: result.param },
    );
  }
}

/** Without a tokenizer: ids in, ids out. */
class TokenIdService implements PromptService {
  readonly available = false;

  encodeText(): Promise<number[]> {
    return Promise.reject(notSupported());
  }

  encodeChat(): Promise<number[]> {
    return Promise.reject(notSupported());
  }

  decode(): Promise<string> {
    return Promise.reject(notSupported());
  }

  tokenStrings(tokens: number[]): string[] {
    return tokens.map((token) => `token_id:${token}`);
  }

  tokenBytes(): Uint8Array {
    return new Uint8Array();
  }

  createDetokenizer(): Detokenizer {
    return { push: () => "", flush: () => "" };
  }

  async close(): Promise<void> {}
}

function notSupported(): RelayError {
  return new RelayError(
    "not_supported",
    "the model has no tokenizer: send the prompt as token ids (/v1/completions)",
  );
}

function mismatch(result: TaskResult): never {
  throw new Error(`a prompt thread answered with ${result.kind}`);
}

/** Threads run compiled code; run from source (tests), the file lies in dist/ all the same. */
function threadFile(): string {
  if (import.meta.url.endsWith(".ts")) {
    return join(packageRoot, "dist", "coordinator", "prompt", "worker-thread.js");
  }
  return fileURLToPath(new URL("./worker-thread.js", import.meta.url));
}
