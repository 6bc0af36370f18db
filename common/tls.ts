/** The one place that decides how our processes trust each other. */
import { isIP } from "node:net";
import { type ChannelCredentials, credentials, ServerCredentials } from "@grpc/grpc-js";
import { RelayError } from "./errors.js";

/**
 * Credentials for a worker port or a connection to one. Without certificates only loopback
 * addresses are allowed; anything else is refused, on the listening and on the dialling side.
 * @param address host:port, IPv6 in brackets.
 * @throws RelayError invalid_configuration for an address beyond loopback.
 */
export function serverCredentials(address: string): ServerCredentials {
  requireLoopback(address);
  return ServerCredentials.createInsecure();
}

export function channelCredentials(address: string): ChannelCredentials {
  requireLoopback(address);
  return credentials.createInsecure();
}

export function isLoopbackHost(host: string): boolean {
  const bare = host.startsWith("[") ? host.slice(1, -1) : host;
  if (bare === "localhost" || bare === "::1") return true;
  return isIP(bare) === 4 && bare.startsWith("127.");
}

function requireLoopback(address: string): void {
  const host = address.slice(0, Math.max(0, address.lastIndexOf(":")));
  if (isLoopbackHost(host)) return;
  throw new RelayError(
    "invalid_configuration",
    `address "${address}" is beyond loopback: worker traffic is not encrypted yet, expected 127.0.0.1:PORT or [::1]:PORT`,
  );
}
