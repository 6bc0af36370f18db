/**
 * One server-sent event stream over a raw response. It owns the head (sent late, so that an early error
 * can still be a status), the pings in silence, and the rule that no more than one write waits in memory
 * for a client that reads slowly.
 */
import type { FastifyReply } from "fastify";
import type { Timing } from "./limits.js";

export class SseStream {
  readonly #reply: FastifyReply;
  readonly #timing: Timing;
  readonly #headers: () => Record<string, string>;
  #opened = false;
  #headTimer: NodeJS.Timeout;
  #pingTimer: NodeJS.Timeout | undefined;

  /** @param headers Called when the head is written. */
  constructor(reply: FastifyReply, timing: Timing, headers: () => Record<string, string>) {
    this.#reply = reply;
    this.#timing = timing;
    this.#headers = headers;
    this.#headTimer = setTimeout(() => this.#open(), timing.headDelayMs);
    reply.raw.once("close", () => this.#stopTimers());
  }

  /** True once the status is out: from then on an error can only be told inside the stream. */
  get opened(): boolean {
    return this.#opened;
  }

  /**
   * Writes one event for each text, all at once.
   * @returns What resolves when the connection has room for more, or is gone; null when it has room now.
   */
  send(texts: readonly string[]): Promise<void> | null {
    if (texts.length === 0) return null;
    let events = "";
    for (const text of texts) events += `data: ${text}\n\n`;
    return this.#write(events);
  }

  async end(): Promise<void> {
    await this.#write("data: [DONE]\n\n");
    this.#stopTimers();
    if (!this.#reply.raw.destroyed) this.#reply.raw.end();
  }

  /** Ends it before its time: without "[DONE]" the client knows that there is more. */
  cut(): void {
    this.#open();
    this.#stopTimers();
    if (!this.#reply.raw.destroyed) this.#reply.raw.end();
  }

  /** For an error before the head: the response is somebody else's to write. */
  abandon(): void {
    this.#stopTimers();
  }

  #open(): void {
    if (this.#opened || this.#reply.raw.destroyed) return;
    this.#opened = true;
    clearTimeout(this.#headTimer);
    this.#reply.hijack();
    this.#reply.raw.writeHead(200, {
      ...(this.#reply.getHeaders() as Record<string, string>),
      ...this.#headers(),
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    });
    this.#reply.raw.flushHeaders();
    this.#pingTimer = setTimeout(() => this.#ping(), this.#timing.pingMs);
  }

  #write(text: string): Promise<void> | null {
    const { raw } = this.#reply;
    this.#open();
    if (raw.destroyed) return null;
    this.#pingTimer?.refresh();
    return raw.write(text) ? null : this.#drained();
  }

  #drained(): Promise<void> {
    const { raw } = this.#reply;
    return new Promise((resolve) => {
      const stalled = setTimeout(() => raw.destroy(), this.#timing.stalledClientMs);
      const done = () => {
        clearTimeout(stalled);
        raw.off("drain", done);
        raw.off("close", done);
        resolve();
      };
      raw.on("drain", done);
      raw.on("close", done);
    });
  }

  /** Nothing is added for a client that has not read what is there already. */
  #ping(): void {
    const { raw } = this.#reply;
    if (raw.destroyed || raw.writableEnded) return;
    if (!raw.writableNeedDrain) raw.write(": ping\n\n");
    this.#pingTimer?.refresh();
  }

  #stopTimers(): void {
    clearTimeout(this.#headTimer);
    clearTimeout(this.#pingTimer);
  }
}
