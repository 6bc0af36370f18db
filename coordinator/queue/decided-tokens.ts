/**
 * Tokens on their way into the ledger. Each has a number, its position in the answer of its choice, so that one
 * that comes twice lies where it lay before. What has not been written waits within bounds; a choice that would
 * exceed them gets no further ones written, and its tail is decided anew after a restart. A state machine: whoever
 * owns it takes what is due, writes it, and says whether that went well.
 */
import type { RequestId } from "../../common/ids.js";

/** Of one request, all choices together: with stop strings so many are replayed in about 15 ms. */
export const maxTokensPerRequest = 8_192;
/** Tokens that wait, while Redis is away, in all. */
const maxWaitingTokens = 262_144;
/** Choices in one write: a pipeline of so many commands takes 4 ms of the main thread. */
const maxWritesAtOnce = 256;

export interface TokenWrite {
  id: RequestId;
  choice: number;
  /** Of the first token. */
  position: number;
  tokens: number[];
}

interface ChoiceTokens {
  /** Tokens that came, those included that stood in the ledger before. */
  noted: number;
  /** Tokens in the ledger. */
  written: number;
  /** Behind those: being written, and waiting for the next write. */
  sent: number[];
  waiting: number[];
  /** No further ones are kept. */
  full: boolean;
}

interface RequestTokens {
  id: RequestId;
  choices: Map<number, ChoiceTokens>;
  /** All that are kept. */
  count: number;
}

export class DecidedTokens {
  readonly #requests = new Map<RequestId, RequestTokens>();
  /** What waits, in the order in which it began to. */
  readonly #due = new Map<ChoiceTokens, { request: RequestTokens; choice: number }>();
  /** What is being written. */
  #sent = new Map<ChoiceTokens, { request: RequestTokens; choice: number }>();
  #waitingCount = 0;

  /** Something waits to be written. */
  get isDue(): boolean {
    return this.#due.size > 0;
  }

  /** @param counts Tokens of each choice that stand in the ledger already, and will be noted once more. */
  restore(id: RequestId, counts: readonly number[]): void {
    const request = this.#request(id);
    for (const [choice, written] of counts.entries()) {
      if (written === 0) continue;
      request.choices.set(choice, { noted: 0, written, sent: [], waiting: [], full: false });
      request.count += written;
    }
  }

  /** The next tokens of a choice. */
  note(id: RequestId, choice: number, tokens: readonly number[]): void {
    const request = this.#request(id);
    let state = request.choices.get(choice);
    if (state === undefined) {
      state = { noted: 0, written: 0, sent: [], waiting: [], full: false };
      request.choices.set(choice, state);
    }
    const known = Math.max(0, state.written - state.noted);
    state.noted += tokens.length;
    const fresh = tokens.slice(known);
    if (state.full || fresh.length === 0) return;
    if (
      request.count + fresh.length > maxTokensPerRequest ||
      this.#waitingCount + fresh.length > maxWaitingTokens
    ) {
      state.full = true;
      return;
    }
    state.waiting.push(...fresh);
    request.count += fresh.length;
    this.#waitingCount += fresh.length;
    this.#due.set(state, { request, choice });
  }

  /** What is to be written now; `settle` must follow before it is asked again. */
  take(): TokenWrite[] {
    const writes: TokenWrite[] = [];
    for (const [state, owner] of this.#due) {
      if (writes.length === maxWritesAtOnce) break;
      state.sent = state.waiting;
      state.waiting = [];
      this.#due.delete(state);
      this.#sent.set(state, owner);
      const { request, choice } = owner;
      writes.push({ id: request.id, choice, position: state.written, tokens: state.sent });
    }
    return writes;
  }

  /** @param stored False: nothing of the last write may be relied on, and it is due again. */
  settle(stored: boolean): void {
    const sent = this.#sent;
    this.#sent = new Map();
    for (const [state, owner] of sent) {
      // It has ended meanwhile.
      if (this.#requests.get(owner.request.id) !== owner.request) continue;
      if (stored) {
        this.#waitingCount -= state.sent.length;
        state.written += state.sent.length;
      } else {
        state.waiting = state.sent.concat(state.waiting);
        this.#due.set(state, owner);
      }
      state.sent = [];
    }
  }

  /** The request has ended. @returns Its choices that may have tokens in the ledger. */
  forget(id: RequestId): number[] {
    const request = this.#requests.get(id);
    if (request === undefined) return [];
    this.#requests.delete(id);
    for (const state of request.choices.values()) {
      this.#due.delete(state);
      this.#waitingCount -= state.sent.length + state.waiting.length;
    }
    return [...request.choices.keys()];
  }

  #request(id: RequestId): RequestTokens {
    let request = this.#requests.get(id);
    if (request === undefined) {
      request = { id, choices: new Map(), count: 0 };
      this.#requests.set(id, request);
    }
    return request;
  }
}

/** As the ledger holds them: little-endian int32 of token + 1 at 4 * position, so that a gap reads as zeros. */
export function tokenBytes(tokens: readonly number[]): Buffer {
  const bytes = Buffer.alloc(4 * tokens.length);
  for (const [i, token] of tokens.entries()) bytes.writeInt32LE(token + 1, 4 * i);
  return bytes;
}

/**
 * The tokens up to the first gap, to one that does not exist, and to `limit` of them.
 * @param tokenCount Ids from here on do not exist.
 */
export function tokensFromBytes(bytes: Buffer, tokenCount: number, limit: number): Int32Array {
  const most = Math.min(Math.floor(bytes.length / 4), limit);
  const tokens = new Int32Array(most);
  for (let i = 0; i < most; i++) {
    const token = bytes.readInt32LE(4 * i) - 1;
    if (token < 0 || token >= tokenCount) return tokens.slice(0, i);
    tokens[i] = token;
  }
  return tokens;
}
