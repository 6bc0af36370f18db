/**
 * The tokens that a batch may use. A line begins only while what was used and what the lines under way may still use
 * leave some, so that a batch uses more than its budget by one line's at most.
 */

/** What a chat template puts around short messages; of many messages each has more bytes than tokens around it. */
const templateTokens = 256;

interface Waiting {
  most: number;
  enter: (reserved: number) => void;
}

export class TokenBudget {
  #reserved = 0;
  /** At most one for each job of the batch that runs. */
  #waiting: Waiting[] = [];

  /**
   * @param limit Null: no bound.
   * @param used Tokens of all lines that are answered.
   */
  constructor(
    private readonly limit: number | null,
    private readonly used: () => number,
  ) {}

  get bounded(): boolean {
    return this.limit !== null;
  }

  get spent(): boolean {
    return this.limit !== null && this.used() >= this.limit;
  }

  /**
   * Waits in turn until a line may begin, or no other may any more.
   * @param most Tokens that the line uses at most.
   * @returns What is to be given back; nothing for a line that may not begin.
   */
  reserve(most: number): Promise<number> {
    return new Promise((enter) => {
      this.#waiting.push({ most, enter });
      this.#next();
    });
  }

  /** A line has ended; what it used is counted already. */
  giveBack(reserved: number): void {
    this.#reserved -= reserved;
    this.#next();
  }

  #next(): void {
    for (let first = this.#waiting[0]; first !== undefined; first = this.#waiting[0]) {
      const fits = this.limit === null || this.used() + this.#reserved < this.limit;
      if (!fits && !this.spent) return;
      this.#waiting.shift();
      const reserved = fits && this.limit !== null ? first.most : 0;
      this.#reserved += reserved;
      first.enter(reserved);
    }
  }
}

/**
 * Tokens that a request uses at most, prompt and replies: a token of a prompt is a byte of its body at least, and no
 * sequence is longer than the context.
 * @param body JSON of a request.
 * @param contextLength Tokens of one sequence.
 */
export function mostTokens(body: Uint8Array, contextLength: number): number {
  let fields: Record<string, unknown>;
  try {
    fields = JSON.parse(Buffer.from(body).toString()) as Record<string, unknown>;
  } catch {
    // It will be refused.
    return 0;
  }
  const { prompt, n, max_tokens, max_completion_tokens } = fields;
  const prompts = Array.isArray(prompt) && typeof prompt[0] !== "number" ? prompt.length : 1;
  const choices = typeof n === "number" && n > 0 ? n : 1;
  const asked = max_completion_tokens ?? max_tokens;
  const reply = typeof asked === "number" && asked >= 0 ? asked : contextLength;
  return prompts * choices * Math.min(contextLength, body.length + templateTokens + reply);
}
