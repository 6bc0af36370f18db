/**
 * Credits of a link: how many frames the receiver is willing to hold. They exceed what the coordinator
 * keeps in flight, so in normal work no sender ever waits; they bound memory when something is wrong. Pure.
 */
import { RelayError } from "../../common/errors.js";

/** Of the sending side. */
export class SendCredits {
  readonly #granted: number;
  #available: number;

  /** @param granted the receiver's offer in Hello. */
  constructor(granted: number) {
    this.#granted = granted;
    this.#available = granted;
  }

  get available(): number {
    return this.#available;
  }

  /** Takes one credit for a frame; false when the receiver holds all that it can. */
  take(): boolean {
    if (this.#available === 0) return false;
    this.#available -= 1;
    return true;
  }

  /** @throws RelayError corrupt_message when more come back than were taken. */
  give(count: number): void {
    if (this.#available + count > this.#granted) {
      throw new RelayError(
        "corrupt_message",
        `receiver returned ${count} credits with ${this.#granted - this.#available} of ${this.#granted} taken`,
      );
    }
    this.#available += count;
  }
}

/** Of the receiving side. */
export class ReceiveCredits {
  readonly #granted: number;
  readonly #returnAt: number;
  #outstanding: number;
  #saved = 0;

  constructor(granted: number) {
    this.#granted = granted;
    this.#outstanding = granted;
    // A message per frame would double the messages of a link. With a quarter saved up the sender
    // still has three quarters.
    this.#returnAt = Math.max(1, Math.floor(granted / 4));
  }

  /** @throws RelayError corrupt_message when the sender had no credit for this frame. */
  arrived(): void {
    if (this.#outstanding === 0) {
      throw new RelayError("corrupt_message", `sender exceeded its ${this.#granted} credits`);
    }
    this.#outstanding -= 1;
  }

  /** Notes a consumed frame; returns how many credits to send back now, 0 while they are saved up. */
  consumed(): number {
    this.#saved += 1;
    if (this.#saved < this.#returnAt) return 0;
    const count = this.#saved;
    this.#outstanding += count;
    this.#saved = 0;
    return count;
  }
}
