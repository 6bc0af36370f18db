/** Places of one kind or of several, such as lines and their bytes; who finds too few waits in turn. */

interface Waiting {
  amounts: readonly number[];
  enter: () => void;
}

export class Room {
  readonly #sizes: readonly number[];
  readonly #taken: number[];
  /** Whoever makes the room bounds how many wait. */
  readonly #waiting: Waiting[] = [];

  /** @param sizes Places of each kind. */
  constructor(...sizes: number[]) {
    this.#sizes = sizes;
    this.#taken = sizes.map(() => 0);
  }

  /**
   * Who asks for more than there are enters when nobody else is in. Whoever has entered leaves once.
   * @param amounts Of each kind; of the first one at least.
   */
  enter(...amounts: number[]): Promise<void> {
    return new Promise((enter) => {
      this.#waiting.push({ amounts, enter });
      this.#next();
    });
  }

  /** @param amounts Those with which it entered. */
  leave(...amounts: number[]): void {
    this.#add(amounts, -1);
    this.#next();
  }

  #next(): void {
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      const fits = first.amounts.every((amount, kind) => this.#taken[kind]! + amount <= this.#sizes[kind]!);
      if (!fits && this.#taken[0]! > 0) return;
      this.#waiting.shift();
      this.#add(first.amounts, 1);
      first.enter();
    }
  }

  #add(amounts: readonly number[], sign: 1 | -1): void {
    for (const [kind, amount] of amounts.entries()) this.#taken[kind]! += sign * amount;
  }
}
