import { expect, test } from "vitest";
import {
  advertisedAddress,
  hostOf,
  isLoopbackHost,
  isWildcardHost,
  portOf,
  requireAdvertisable,
  urlHost,
} from "../../../common/address.js";
import { channelCredentials, requireTrustedApi, serverCredentials } from "../../../common/tls.js";

test.each([
  ["127.0.0.1", true],
  ["127.9.8.7", true],
  ["localhost", true],
  ["::1", true],
  ["[::1]", true],
  ["0:0:0:0:0:0:0:1", true],
  ["::ffff:127.0.0.1", true],
  ["0.0.0.0", false],
  ["::", false],
  ["10.0.0.1", false],
  ["[fd00::1]", false],
  ["127.0.0.1.example", false],
  ["localhost.example", false],
  ["worker-0.workers", false],
  ["", false],
])("%j is on loopback: %s", (host, expected) => {
  expect(isLoopbackHost(host)).toBe(expected);
});

test("wildcards are told from addresses", () => {
  expect(["0.0.0.0", "::", "[::]", "0:0:0:0:0:0:0:0"].map(isWildcardHost)).toEqual([true, true, true, true]);
  expect(["127.0.0.1", "::1", "10.0.0.0", "a"].map(isWildcardHost)).toEqual([false, false, false, false]);
});

test("addresses come apart and together, IPv6 included", () => {
  expect([hostOf("[::1]:7"), portOf("[::1]:7"), hostOf("a.b:80"), portOf("a.b:80")]).toEqual([
    "[::1]",
    7,
    "a.b",
    80,
  ]);
  expect(["::1", "[::1]", "127.0.0.1", "a"].map(urlHost)).toEqual(["[::1]", "[::1]", "127.0.0.1", "a"]);
});

test("others are told the advertised address, with the bound port where it names none", () => {
  expect(advertisedAddress("127.0.0.1:81", undefined)).toBe("127.0.0.1:81");
  expect(advertisedAddress("0.0.0.0:81", "pod.svc:0")).toBe("pod.svc:81");
  expect(advertisedAddress("[::]:81", "[fd00::1]:0")).toBe("[fd00::1]:81");
  expect(advertisedAddress("0.0.0.0:81", "pod.svc:443")).toBe("pod.svc:443");
});

test("a wildcard address cannot be told", () => {
  const flags = { listen: "--listen", advertise: "--advertise" };
  expect(() => requireAdvertisable("[::]:0", undefined, flags)).toThrow(
    "--listen [::]:0: nobody can dial a wildcard address, expected --advertise HOST:PORT",
  );
  expect(() => requireAdvertisable("0.0.0.0:0", "0.0.0.0:1", flags)).toThrow("--advertise 0.0.0.0:1");
  expect(() => requireAdvertisable("0.0.0.0:0", "a:0", flags)).not.toThrow();
  expect(() => requireAdvertisable("10.0.0.1:0", undefined, flags)).not.toThrow();
});

test("beyond loopback workers have to be trusted, on both sides", () => {
  for (const credentials of [serverCredentials, channelCredentials]) {
    for (const address of ["0.0.0.0:1", "[fd00::1]:1", "coordinator:1"]) {
      expect(() => credentials(address)).toThrow(/is beyond loopback.*--insecure-workers/);
      expect(() => credentials(address, { insecureWorkers: true })).not.toThrow();
    }
    expect(() => credentials("[::1]:1")).not.toThrow();
  }
});

test("beyond loopback the API wants keys, or to be told that it needs none", () => {
  const closed = { hasKeys: false, insecureNoAuth: false };
  expect(() => requireTrustedApi("0.0.0.0", closed)).toThrow(/'0.0.0.0' is beyond loopback.*--api-keys-file/);
  expect(() => requireTrustedApi("0.0.0.0", { ...closed, hasKeys: true })).not.toThrow();
  expect(() => requireTrustedApi("::", { ...closed, insecureNoAuth: true })).not.toThrow();
  expect(() => requireTrustedApi("::1", closed)).not.toThrow();
});
