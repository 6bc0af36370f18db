/** host:port as our processes bind, dial and tell it; IPv6 addresses stand in brackets. */
import { BlockList, isIP, isIPv6 } from "node:net";
import { RelayError } from "./errors.js";

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

const wildcard = new BlockList();
wildcard.addAddress("0.0.0.0", "ipv4");
wildcard.addAddress("::", "ipv6");

/** @param host With or without brackets. A name counts as beyond loopback, but for localhost. */
export function isLoopbackHost(host: string): boolean {
  return bareHost(host) === "localhost" || isIn(loopback, host);
}

/** An address to listen on, on all of the machine's; nobody can be told to dial it. */
export function isWildcardHost(host: string): boolean {
  return isIn(wildcard, host);
}

/** As sockets take it. */
export function bareHost(host: string): string {
  return host.startsWith("[") && host.endsWith("]") ? host.slice(1, -1) : host;
}

/** As it stands in front of a port. */
export function urlHost(host: string): string {
  return isIPv6(host) ? `[${host}]` : host;
}

export function hostOf(address: string): string {
  return address.slice(0, Math.max(0, address.lastIndexOf(":")));
}

export function portOf(address: string): number {
  return Number(address.slice(address.lastIndexOf(":") + 1));
}

/**
 * What others are told to dial.
 * @param bound host:port that is listened on.
 * @param advertise host:port; port 0 means the one that is listened on. Absent: what is listened on.
 */
export function advertisedAddress(bound: string, advertise: string | undefined): string {
  if (advertise === undefined) return bound;
  return portOf(advertise) === 0 ? `${hostOf(advertise)}:${portOf(bound)}` : advertise;
}

/**
 * To be called before anything is bound.
 * @param flags Of the command line, for the message.
 * @throws RelayError invalid_configuration when nobody could dial what would be told.
 */
export function requireAdvertisable(
  listen: string,
  advertise: string | undefined,
  flags: { listen: string; advertise: string },
): void {
  if (advertise !== undefined && isWildcardHost(hostOf(advertise))) {
    throw new RelayError(
      "invalid_configuration",
      `${flags.advertise} ${advertise}: nobody can dial a wildcard address, expected HOST:PORT of this machine`,
    );
  }
  if (advertise === undefined && isWildcardHost(hostOf(listen))) {
    throw new RelayError(
      "invalid_configuration",
      `${flags.listen} ${listen}: nobody can dial a wildcard address, expected ${flags.advertise} HOST:PORT ` +
        "beside it that says where this process is reached",
    );
  }
}

function isIn(list: BlockList, host: string): boolean {
  const bare = bareHost(host);
  const version = isIP(bare);
  return version !== 0 && list.check(bare, version === 6 ? "ipv6" : "ipv4");
}
