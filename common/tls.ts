/** The one place that decides how our processes trust each other. */
import { type ChannelCredentials, credentials, ServerCredentials } from "@grpc/grpc-js";
import { hostOf, isLoopbackHost } from "./address.js";
import { RelayError } from "./errors.js";

/** How a process meets coordinators and workers of its cluster. */
export interface WorkerTrust {
  /** --insecure-workers: plain connections are allowed beyond loopback, too. */
  insecureWorkers?: boolean | undefined;
}

/**
 * Credentials for a worker port or a connection to one. Without certificates only loopback
 * addresses are allowed; anything else is refused, on the listening and on the dialling side.
 * @param address host:port, IPv6 in brackets.
 * @throws RelayError invalid_configuration for an address beyond loopback.
 */
export function serverCredentials(address: string, trust: WorkerTrust = {}): ServerCredentials {
  requireTrustedAddress(address, trust);
  return ServerCredentials.createInsecure();
}

export function channelCredentials(address: string, trust: WorkerTrust = {}): ChannelCredentials {
  requireTrustedAddress(address, trust);
  return credentials.createInsecure();
}

/**
 * To be called before the API is served: beyond loopback it wants keys.
 * @param api hasKeys: callers are asked for a key; insecureNoAuth: --insecure-no-auth.
 * @throws RelayError invalid_configuration for a host beyond loopback without either.
 */
export function requireTrustedApi(host: string, api: { hasKeys: boolean; insecureNoAuth: boolean }): void {
  if (isLoopbackHost(host) || api.hasKeys || api.insecureNoAuth) return;
  throw new RelayError(
    "invalid_configuration",
    `option '--host <host>' argument '${host}' is beyond loopback: expected 127.0.0.1, or --api-keys-file FILE ` +
      "with the keys that callers must have, or --insecure-no-auth to serve everybody who reaches it",
  );
}

/**
 * What both do first, for who wants to know before anything else is looked at.
 * @throws RelayError invalid_configuration for an address beyond loopback.
 */
export function requireTrustedAddress(address: string, { insecureWorkers = false }: WorkerTrust): void {
  if (insecureWorkers || isLoopbackHost(hostOf(address))) return;
  throw new RelayError(
    "invalid_configuration",
    `address "${address}" is beyond loopback, where traffic between coordinator and workers is neither encrypted ` +
      "nor authenticated: expected 127.0.0.1:PORT or [::1]:PORT, or --insecure-workers on a network that nobody else reaches",
  );
}
