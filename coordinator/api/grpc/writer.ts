/**
 * The messages of one stream on their way to the client. A client that reads slowly holds its request
 * back: as many messages wait for it as a Node stream of objects takes (16), and one that reads nothing
 * for too long is given up.
 */
import type { ServerWritableStream } from "@grpc/grpc-js";
import { RelayError } from "../../../common/errors.js";
import type { Presence } from "../follow.js";

export class MessageWriter<T> {
  readonly #call: ServerWritableStream<Uint8Array, T>;
  readonly #client: Presence;
  readonly #stalledClientMs: number;

  constructor(call: ServerWritableStream<Uint8Array, T>, client: Presence, stalledClientMs: number) {
    this.#call = call;
    this.#client = client;
    this.#stalledClientMs = stalledClientMs;
  }

  /** Resolves when there is room for more. @throws RelayError when the client has left or reads nothing */
  async write(message: T): Promise<void> {
    this.#client.check();
    if (!this.#call.write(message)) await this.#until("drain");
  }

  /** Resolves when all has been handed to the connection. @throws as write */
  async end(): Promise<void> {
    this.#client.check();
    this.#call.end();
    if (!this.#call.writableFinished) await this.#until("finish");
  }

  #until(event: "drain" | "finish"): Promise<void> {
    return new Promise((resolve, reject) => {
      const settle = (how: () => void) => {
        clearTimeout(stalled);
        this.#call.off(event, reached);
        this.#client.onLeave = undefined;
        how();
      };
      // What came first counts: right after its end a call is told to be cancelled, however it ended.
      const reached = () => settle(resolve);
      const stalled = setTimeout(() => {
        const seconds = this.#stalledClientMs / 1_000;
        this.#client.leave(new RelayError("cancelled", `the client has read nothing for ${seconds} s`));
      }, this.#stalledClientMs);
      this.#call.on(event, reached);
      this.#client.onLeave = () => settle(() => reject(this.#client.end));
    });
  }
}
