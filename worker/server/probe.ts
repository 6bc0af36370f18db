/** /livez, /readyz and /metrics over plain HTTP on loopback, answered from state already held. */
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { Registry } from "prom-client";
import { RelayError } from "../../common/errors.js";

const host = "127.0.0.1";

export interface ProbeOptions {
  /** 0 takes a free one. */
  port: number;
  registry: Registry;
  /** Null when ready, else what is missing. */
  notReady(): string | null;
}

export class Probe {
  readonly #server: Server;
  readonly #options: ProbeOptions;

  constructor(options: ProbeOptions) {
    this.#options = options;
    this.#server = createServer((request, response) => this.#answer(request.url ?? "", response));
  }

  /** @returns host:port as bound. */
  listen(): Promise<string> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", (error) => {
        const message = `cannot listen on probe port ${this.#options.port}: ${error.message}`;
        reject(new RelayError("invalid_configuration", message, { cause: error }));
      });
      this.#server.listen(this.#options.port, host, () => {
        resolve(`${host}:${(this.#server.address() as AddressInfo).port}`);
      });
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #answer(url: string, response: ServerResponse): void {
    switch (url.split("?")[0]) {
      case "/livez":
        send(response, 200, "ok\n");
        return;
      case "/readyz": {
        const missing = this.#options.notReady();
        send(response, missing === null ? 200 : 503, `${missing ?? "ok"}\n`);
        return;
      }
      case "/metrics":
        this.#options.registry.metrics().then(
          (text) => send(response, 200, text, this.#options.registry.contentType),
          (error: Error) => send(response, 500, `${error.message}\n`),
        );
        return;
      default:
        send(response, 404, "not found\n");
    }
  }
}

function send(
  response: ServerResponse,
  status: number,
  body: string,
  type = "text/plain; charset=utf-8",
): void {
  response.writeHead(status, { "content-type": type, "content-length": Buffer.byteLength(body) });
  response.end(body);
}
