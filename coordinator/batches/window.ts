/** How many lines of all batches together are being answered, by number and by bytes; who comes later waits in turn. */

interface Waiting {
  bytes: number;
  enter: () => void;
}

export class LineWindow {
  #lines = 0;
  #bytes = 0;
  /** At most one for each job that runs. */
  readonly #waiting: Waiting[] = [];

  constructor(
    private readonly maxLines: number,
    private readonly maxBytes: number,
  ) {}

  /** A line of more bytes than there is room for enters alone. Whoever has entered leaves once. */
  enter(bytes: number): Promise<void> {
    return new Promise((enter) => {
      this.#waiting.push({ bytes, enter });
      this.#next();
    });
  }

  leave(bytes: number): void {
    this.#lines--;
    this.#bytes -= bytes;
    this.#next();
  }

  #next(): void {
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      const fits = this.#lines < this.maxLines && this.#bytes + first.bytes <= this.maxBytes;
      if (!fits && this.#lines > 0) return;
      this.#waiting.shift();
      this.#lines++;
      this.#bytes += first.bytes;
      first.enter();
    }
  }
}
