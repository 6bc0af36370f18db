/**
 * Requests that an earlier process had accepted, until the model is served again, and those that came after them:
 * all go to the core in the order in which they were accepted. A state machine with ports.
 */
import { RelayError } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";
import type { GenerationRequest, TokenIds } from "./inference.js";

/** The core takes up requests for so long before the event loop gets its turn. */
const sliceMs = 4;

export interface HeldPorts {
  /** Whether the core would take a request now. */
  ready(): boolean;
  /** @param decided Of each choice, its tokens up to now. */
  admit(request: GenerationRequest, decided: readonly TokenIds[]): void;
  /** Runs it after other events. */
  later(run: () => void): void;
  nowMs(): number;
}

export class HeldRequests {
  readonly #ports: HeldPorts;
  /** Bounded by what the ledger and the queue held. */
  readonly #held = new Map<RequestId, { request: GenerationRequest; decided: readonly TokenIds[] }>();
  /** Since when there are any. */
  #sinceMs = 0;
  #releasing = false;

  constructor(ports: HeldPorts) {
    this.#ports = ports;
  }

  /** Whoever comes now has to wait behind others. */
  get any(): boolean {
    return this.#held.size > 0;
  }

  add(request: GenerationRequest, decided: readonly TokenIds[] = []): void {
    if (!this.any) this.#sinceMs = this.#ports.nowMs();
    this.#held.set(request.id, { request, decided });
    this.release();
  }

  /** @returns Whether it was held. */
  remove(id: RequestId): boolean {
    return this.#held.delete(id);
  }

  /** Gives them to the core when that is ready, some per turn of the event loop. */
  release(): void {
    if (this.#releasing || !this.any || !this.#ports.ready()) return;
    this.#releasing = true;
    this.#ports.later(() => this.#releaseSome());
  }

  /** @returns Those that have been held for longer than `limitMs`; they are held no more. */
  overdue(limitMs: number): { ids: RequestId[]; error: RelayError } | null {
    if (!this.any || this.#ports.nowMs() - this.#sinceMs <= limitMs) return null;
    const ids = [...this.#held.keys()];
    this.#held.clear();
    const message = `the coordinator was restarted and the model was not served again within ${limitMs / 1_000} s`;
    return { ids, error: new RelayError("worker_lost", message, { retryAfterS: 1 }) };
  }

  #releaseSome(): void {
    const beganMs = this.#ports.nowMs();
    for (const [id, { request, decided }] of this.#held) {
      this.#held.delete(id);
      this.#ports.admit(request, decided);
      if (this.#ports.nowMs() - beganMs >= sliceMs) break;
    }
    // Should the pipeline be lost meanwhile, the core keeps them with those that the loss interrupted.
    if (this.any) {
      this.#ports.later(() => this.#releaseSome());
      return;
    }
    this.#releasing = false;
  }
}
