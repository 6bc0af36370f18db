/** Messages of a stream as they came; a test waits for the one it is interested in. */

/** Far above what any exchange on loopback takes, below the runner's own limit. */
const waitMs = 4_000;

interface Waiter<T> {
  wanted: (message: T) => boolean;
  resolve: (message: T) => void;
}

export class Inbox<T> {
  readonly #name: string;
  #messages: T[] = [];
  #waiters: Waiter<T>[] = [];

  constructor(name: string) {
    this.#name = name;
  }

  get size(): number {
    return this.#messages.length;
  }

  put(message: T): void {
    const waiter = this.#waiters.find(({ wanted }) => wanted(message));
    if (waiter === undefined) {
      // What comes before an awaited message is of no interest.
      if (this.#waiters.length === 0) this.#messages.push(message);
      return;
    }
    this.#waiters.splice(this.#waiters.indexOf(waiter), 1);
    waiter.resolve(message);
  }

  /** The first message that is wanted; earlier ones are forgotten. */
  next(wanted: (message: T) => boolean = () => true): Promise<T> {
    const index = this.#messages.findIndex(wanted);
    if (index >= 0) return Promise.resolve(this.#messages.splice(0, index + 1)[index]!);
    this.#messages = [];
    return new Promise((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new Error(`${this.#name}: nothing came in ${waitMs} ms`)),
        waitMs,
      );
      const waiter: Waiter<T> = {
        wanted,
        resolve: (message) => {
          clearTimeout(timer);
          resolve(message);
        },
      };
      this.#waiters.push(waiter);
    });
  }
}
