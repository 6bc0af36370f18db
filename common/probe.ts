/**
 * The probe port of a process: /livez, /readyz and /metrics over plain HTTP, on loopback unless told otherwise. It
 * holds no request data.
 *
 * /livez says that the event loop turns and nothing else, also while a model loads or the process
 * drains: it asks neither Redis nor a neighbour, since restarting this process mends neither. /readyz
 * answers from state already held; a probe that waits for a busy part gets a healthy process killed.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { bareHost, urlHost } from "./address.js";
import { RelayError } from "./errors.js";

const defaultHost = "127.0.0.1";
/** Those who ask are a few probes and scrapers; more sockets than this are a mistake of somebody's. */
const maxConnections = 64;
/** For a request to arrive; it has no body. */
const requestTimeoutMs = 10_000;

export interface ProbeOptions {
  /** An address of this machine, or a wildcard; default 127.0.0.1. */
  host?: string | undefined;
  /** 0 takes a free one. */
  port: number;
  /** The page of /metrics and its Content-Type. */
  metrics: { scrape(): Promise<string>; readonly contentType: string };
  /** Null when ready, else what is missing. */
  notReady(): string | null;
}

export class Probe {
  readonly #server: Server;
  readonly #options: ProbeOptions;

  constructor(options: ProbeOptions) {
    this.#options = options;
    this.#server = createServer({ requestTimeout: requestTimeoutMs }, (request, response) =>
      this.#answer(request, response),
    );
    this.#server.maxConnections = maxConnections;
  }

  /**
   * @returns host:port as bound.
   * @throws RelayError invalid_configuration when the address cannot be bound.
   */
  listen(): Promise<string> {
    const { host: given = defaultHost, port } = this.#options;
    const host = bareHost(given);
    return new Promise((resolve, reject) => {
      this.#server.once("error", (error) => {
        const message = `cannot listen on probe port ${port} of ${host}: ${error.message}`;
        reject(new RelayError("invalid_configuration", message, { cause: error }));
      });
      this.#server.listen(port, host, () => {
        resolve(`${urlHost(host)}:${(this.#server.address() as AddressInfo).port}`);
      });
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #answer({ method, url = "" }: IncomingMessage, response: ServerResponse): void {
    if (method !== "GET" && method !== "HEAD") {
      response.setHeader("allow", "GET, HEAD");
      send(response, 405, "method not allowed\n");
      return;
    }
    switch (url.split("?")[0]) {
      case "/livez":
        send(response, 200, "ok\n");
        return;
      case "/readyz": {
        const missing = this.#options.notReady();
        send(response, missing === null ? 200 : 503, `${missing ?? "ok"}\n`);
        return;
      }
      case "/metrics": {
        const { metrics } = this.#options;
        metrics.scrape().then(
          (page) => send(response, 200, page, metrics.contentType),
          (error: Error) => send(response, 500, `${error.message}\n`),
        );
        return;
      }
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
