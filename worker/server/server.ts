/** The worker's gRPC port: the Link service, health and reflection. */
import { Server } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation, protoPath as healthProtoPath } from "grpc-health-check";
import { hostOf } from "../../common/address.js";
import { RelayError } from "../../common/errors.js";
import { serverOptions } from "../../common/grpc.js";
import { serverCredentials, type WorkerTrust } from "../../common/tls.js";
import type { LinkCall } from "../../proto/link/downstream.js";
import { internalProto, packageDefinition } from "../../proto/load.js";

const linkService = "glm.relay.internal.v1.Link";
const healthService = "grpc.health.v1.Health";
/** tryShutdown waits for every open stream, and may wait for ever (grpc-node #1458). */
const shutdownGraceMs = 500;

export class WorkerServer {
  readonly #server = new Server(serverOptions);
  readonly #health = new HealthImplementation({ "": "NOT_SERVING", [linkService]: "NOT_SERVING" });

  /** @param connect takes the streams of stages that want to receive. */
  constructor(connect: (call: LinkCall) => void) {
    this.#server.addService(internalProto.Link.service, { Connect: connect });
    this.#health.addToServer(this.#server);
    const described = { ...packageDefinition, ...loadSync(healthProtoPath) };
    new ReflectionService(described, { services: [linkService, healthService] }).addToServer(this.#server);
  }

  /**
   * @param address host:port; port 0 takes a free one.
   * @returns host:port as bound.
   * @throws RelayError invalid_configuration when it may not or cannot be bound.
   */
  listen(address: string, trust: WorkerTrust = {}): Promise<string> {
    const credentials = serverCredentials(address, trust);
    const host = hostOf(address);
    return new Promise((resolve, reject) => {
      this.#server.bindAsync(address, credentials, (error, port) => {
        if (error === null) resolve(`${host}:${port}`);
        else reject(new RelayError("invalid_configuration", `cannot listen on ${address}: ${error.message}`));
      });
    });
  }

  setServing(serving: boolean): void {
    for (const service of ["", linkService]) {
      this.#health.setStatus(service, serving ? "SERVING" : "NOT_SERVING");
    }
  }

  /** Waits a little for open streams, then cuts them. */
  close(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.#server.forceShutdown();
        resolve();
      }, shutdownGraceMs);
      this.#server.tryShutdown(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}
