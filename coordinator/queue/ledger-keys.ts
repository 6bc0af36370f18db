/** Where in Redis the ledger lies, and how long. */
import type { GenerationRequest } from "../inference.js";

/** A record outlives its request at most this long, should Redis be away when it ends. */
export const recordTtlS = 24 * 3600;
/** How long the answer of a request that ended without its client can be fetched. */
export const answerTtlS = 3600;
/** How long a record that could not be read is kept for whoever wants to know why. */
export const asideTtlS = 24 * 3600;

export class LedgerKeys {
  /** Matches all keys of the cluster, those of the queue included. */
  readonly pattern: string;
  readonly #prefix: string;

  constructor(prefix: string) {
    this.#prefix = prefix;
    this.pattern = `${prefix.replaceAll(/[\\*?[\]]/g, "\\$&")}:*`;
  }

  /** The request as JSON (record.ts). */
  record(id: string): string {
    return `${this.#prefix}:ledger:${id}`;
  }

  /** Tokens decided for one of its choices (decided-tokens.ts). */
  tokens(id: string, choice: number): string {
    return `${this.#prefix}:tokens:${id}:${choice}`;
  }

  /** The answer of a request that ended without its client, as JSON. */
  answer(id: string): string {
    return `${this.#prefix}:answer:${id}`;
  }

  /** The id of the request that a tenant's client called by this name, and whose answer is kept. */
  named({ tenant, logId }: Pick<GenerationRequest, "tenant" | "logId">): string {
    return `${this.#prefix}:answer-of:${tenant}:${logId}`;
  }

  /** A record that could not be read. */
  aside(id: string): string {
    return `${this.#prefix}:aside:${id}`;
  }

  /** The id of the request that a record or tokens belong to; null for any other key. */
  ownerOf(key: string): { kind: "record" | "tokens"; id: string } | null {
    const record = this.record("");
    const tokens = `${this.#prefix}:tokens:`;
    if (key.startsWith(record)) return { kind: "record", id: key.slice(record.length) };
    if (!key.startsWith(tokens)) return null;
    return { kind: "tokens", id: key.slice(tokens.length, key.lastIndexOf(":")) };
  }
}
