/**
 * A client that streams one answer after the other over a connection that stays open, and notes when each
 * token came. It reads as little of HTTP as will do: beside hundreds of others of its kind in one process
 * it must not be what is measured.
 */
import { connect, type Socket } from "node:net";

const eventMark = "data: {";
/** What ends the body of a stream, in one piece or several. */
const endMark = "data: [DONE]\n\n";
const bodyEnd = "\r\n0\r\n\r\n";
const carriedLength = endMark.length + bodyEnd.length;
const goodHead = "HTTP/1.1 200 ";

export interface StreamLoad {
  host: string;
  port: number;
  promptTokens: number;
  /** Of every answer. */
  tokens: number;
}

export interface TokenSink {
  /** @param gapMs Since the token before it; null for the first one of an answer. */
  token(gapMs: number | null): void;
  /** @param ms From the request to the end of its answer. */
  answered(ms: number): void;
  failed(why: string): void;
}

export class StreamClient {
  readonly #load: StreamLoad;
  readonly #sink: TokenSink;
  readonly #nextSeed: () => number;
  readonly #socket: Socket;
  /** The end of what came before, in which a mark may have begun. */
  #carried = "";
  #headRead = false;
  #events = 0;
  #lastMs = 0;
  #askedMs = 0;

  /** @param nextSeed A number that no other request has had, so that prompts are all different. */
  constructor(load: StreamLoad, nextSeed: () => number, sink: TokenSink) {
    this.#load = load;
    this.#sink = sink;
    this.#nextSeed = nextSeed;
    this.#socket = connect({ host: load.host, port: load.port, noDelay: true });
    this.#socket.once("connect", () => this.#ask());
    this.#socket.on("data", (data) => this.#read(data.toString("latin1")));
    this.#socket.on("error", (error) => sink.failed(error.message));
    this.#socket.on("close", () => sink.failed("the connection was closed"));
  }

  /** Leaves in the middle of its answer. */
  leave(): void {
    this.#socket.removeAllListeners("close");
    this.#socket.destroy();
  }

  #ask(): void {
    const { host, port, promptTokens, tokens } = this.#load;
    const seed = this.#nextSeed();
    const prompt = Array.from(
      { length: promptTokens },
      (_, i) => 300 + ((seed * 31 + i * (seed % 89)) % 1_000),
    );
    const body = JSON.stringify({ prompt, max_tokens: tokens, ignore_eos: true, stream: true, seed });
    this.#headRead = false;
    this.#carried = "";
    this.#events = 0;
    this.#askedMs = performance.now();
    this.#socket.write(
      `POST /v1/completions HTTP/1.1\r\nhost: ${host}:${port}\r\ncontent-type: application/json\r\n` +
        `content-length: ${body.length}\r\n\r\n${body}`,
    );
  }

  #read(data: string): void {
    const nowMs = performance.now();
    const text = this.#carried + data;
    if (!this.#headRead) {
      if (text.length < goodHead.length) {
        this.#carried = text;
        return;
      }
      this.#headRead = true;
      if (!text.startsWith(goodHead)) {
        this.#sink.failed(text.slice(0, 1_000));
        this.leave();
        return;
      }
    }
    let at = 0;
    for (;;) {
      const found = text.indexOf(eventMark, at);
      if (found < 0) break;
      at = found + eventMark.length;
      this.#event(nowMs);
    }
    // Nothing that was counted may be found again.
    this.#carried = text.slice(Math.max(at, text.length - carriedLength));
    if (!this.#carried.endsWith(bodyEnd)) return;
    this.#sink.answered(nowMs - this.#askedMs);
    this.#ask();
  }

  /** One for each token, and one more with the reason of the end. */
  #event(nowMs: number): void {
    const first = this.#events++ === 0;
    if (this.#events <= this.#load.tokens) this.#sink.token(first ? null : nowMs - this.#lastMs);
    this.#lastMs = nowMs;
  }
}
