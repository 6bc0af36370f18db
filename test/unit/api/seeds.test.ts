import fc from "fast-check";
import { expect, it } from "vitest";
import { deriveSeed, drawSeed, seedField } from "../../../coordinator/api/seeds.js";

it("choice 0 keeps the seed; further ones are splitmix64's outputs", () => {
  expect(deriveSeed(42n, 0)).toBe(42n);
  // The reference generator started at 0 and at 1234567.
  expect(BigInt.asUintN(64, deriveSeed(0n, 1))).toBe(0xe220a8397b1dcdafn);
  expect(BigInt.asUintN(64, deriveSeed(0n, 2))).toBe(0x6e789e6aa1b965f4n);
  expect(BigInt.asUintN(64, deriveSeed(1234567n, 1))).toBe(6457827717110365317n);
});

it("every derived seed is an int64 and differs from its neighbours", () => {
  const int64 = fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n });
  fc.assert(
    fc.property(int64, (seed) => {
      const seeds = Array.from({ length: 16 }, (_, choice) => deriveSeed(seed, choice));
      expect(seeds.every((derived) => derived === BigInt.asIntN(64, derived))).toBe(true);
      expect(new Set(seeds.slice(1)).size).toBe(15);
    }),
  );
});

it("drawn seeds differ", () => {
  expect(new Set(Array.from({ length: 100 }, drawSeed)).size).toBe(100);
});

it("a seed is read exactly or refused", () => {
  expect(seedField.read(9007199254740991, "seed")).toBe(9007199254740991n);
  expect(seedField.read("-9223372036854775808", "seed")).toBe(-9223372036854775808n);
  for (const bad of [9007199254740992, "1e5", "", "0x10", 0.5, true]) {
    expect(() => seedField.read(bad, "seed")).toThrow("expected an int64");
  }
});
