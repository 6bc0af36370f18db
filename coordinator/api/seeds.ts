/** Seeds: int64, one per choice. The same (seed, choice) gives the same random numbers for ever. */
import { createHash, randomBytes } from "node:crypto";
import type { Field } from "./fields.js";
import { invalid } from "./fields.js";

const int64Min = -(2n ** 63n);
const int64Max = 2n ** 63n - 1n;
const mask64 = 2n ** 64n - 1n;
/** 2^64 divided by the golden ratio, made odd: the increment of splitmix64. */
const goldenGamma = 0x9e3779b97f4a7c15n;

/**
 * Seed of choice `choice` of a prompt: choice 0 uses the client's seed, so that asking for more choices
 * does not change the first one; choice j is output j of splitmix64 started at the seed (Steele, Lea,
 * Flood: Fast splittable pseudorandom number generators, OOPSLA 2014). The mix is a bijection, so the
 * choices of one seed never share a stream.
 */
export function deriveSeed(seed: bigint, choice: number): bigint {
  if (choice === 0) return BigInt.asIntN(64, seed);
  let z = (seed + BigInt(choice) * goldenGamma) & mask64;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & mask64;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & mask64;
  return BigInt.asIntN(64, z ^ (z >> 31n));
}

/** For a request without a seed; kept with the request, so that a replay is equal. */
export function drawSeed(): bigint {
  return randomBytes(8).readBigInt64LE();
}

/** For a line of a batch without a seed: whenever it is run again, the same. */
export function lineSeed(batchId: string, customId: string): bigint {
  return createHash("sha256").update(`${batchId}\n${customId}`).digest().readBigInt64LE();
}

/**
 * A JSON number is exact only up to 2^53. A larger seed must come as a string of digits: rounding it
 * would be another seed than the one that the client wrote down.
 */
export const seedField: Field<bigint | undefined> = {
  schema: { oneOf: [{ type: "integer" }, { type: "string", pattern: "^-?[0-9]{1,19}$" }] },
  read(value, path) {
    if (value === undefined || value === null) return undefined;
    if (typeof value === "number" && Number.isSafeInteger(value)) return BigInt(value);
    if (typeof value === "string" && /^-?[0-9]{1,19}$/.test(value)) {
      const seed = BigInt(value);
      if (seed >= int64Min && seed <= int64Max) return seed;
    }
    throw invalid(path, value, "an int64: an integer up to 2^53 or a string of digits");
  },
};
