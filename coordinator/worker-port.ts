/** The gRPC port to which workers connect: bound, and closed in time. */
import type { Server } from "@grpc/grpc-js";
import { hostOf } from "../common/address.js";
import { RelayError } from "../common/errors.js";
import { serverCredentials, type WorkerTrust } from "../common/tls.js";

/** tryShutdown can wait for ever on a half-open stream. */
const closeLimitMs = 500;

/**
 * @returns host:port as bound.
 * @throws RelayError invalid_configuration when the address may not or cannot be bound.
 */
export async function bindWorkerPort(grpc: Server, address: string, trust: WorkerTrust): Promise<string> {
  const credentials = serverCredentials(address, trust);
  const host = hostOf(address);
  return new Promise((resolve, reject) => {
    grpc.bindAsync(address, credentials, (error, port) => {
      if (error === null) resolve(`${host}:${port}`);
      else {
        reject(
          new RelayError(
            "invalid_configuration",
            `cannot listen for workers on ${address}: ${error.message}`,
            {
              cause: error,
            },
          ),
        );
      }
    });
  });
}

export function closeWorkerPort(grpc: Server): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      grpc.forceShutdown();
      resolve();
    }, closeLimitMs);
    grpc.tryShutdown(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}
