/** The Membership service: control streams of workers, as messages in and out of the core. */
import type { ServerDuplexStream } from "@grpc/grpc-js";
import type { Logger } from "../../common/log.js";
import type { CoordinatorMessage } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { MembershipHandlers } from "../../proto/generated/glm/relay/internal/v1/Membership.js";
import type { WorkerMessage__Output } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import type { ConnectionId } from "./member.js";

type ControlStream = ServerDuplexStream<WorkerMessage__Output, CoordinatorMessage>;

export interface ControlEvents {
  message(connection: ConnectionId, message: WorkerMessage__Output): void;
  gone(connection: ConnectionId, reason: string): void;
}

export class ControlServer {
  readonly #events: ControlEvents;
  readonly #log: Logger;
  readonly #streams = new Map<ConnectionId, ControlStream>();
  #nextConnection = 1;

  constructor(events: ControlEvents, log: Logger) {
    this.#events = events;
    this.#log = log;
  }

  readonly handlers: MembershipHandlers = {
    Join: (stream) => {
      const connection = this.#nextConnection++;
      this.#streams.set(connection, stream);
      const gone = (reason: string) => {
        if (!this.#streams.delete(connection)) return;
        stream.end();
        this.#events.gone(connection, reason);
      };
      stream.on("data", (message: WorkerMessage__Output) => {
        if (this.#streams.has(connection)) this.#events.message(connection, message);
      });
      stream.on("end", () => gone("its control stream ended"));
      stream.on("cancelled", () => gone("its control stream broke"));
      stream.on("error", (error: Error) => {
        this.#log.debug({ err: error }, "control stream");
        gone("its control stream broke");
      });
    },
  };

  send(connection: ConnectionId, message: CoordinatorMessage): void {
    this.#streams.get(connection)?.write(message);
  }

  disconnect(connection: ConnectionId): void {
    const stream = this.#streams.get(connection);
    this.#streams.delete(connection);
    stream?.end();
  }

  close(): void {
    for (const connection of [...this.#streams.keys()]) this.disconnect(connection);
  }
}
