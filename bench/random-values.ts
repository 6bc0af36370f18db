/** Random values as the types of checkpoints store them, from a seed. */
import { type DType, dtypeBytes } from "../models/shape.js";

/** Uniform in [0, 1). Mulberry32. */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal values, by Box and Muller's method. */
export function normalValues(count: number, random: () => number): Float32Array {
  const values = new Float32Array(count);
  for (let index = 0; index < count; index += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    values[index] = radius * Math.cos(angle);
    if (index + 1 < count) values[index + 1] = radius * Math.sin(angle);
  }
  return values;
}

/** Values times `scale`, little-endian, rounded to nearest. Finite values below 65504 only. */
export function encode(values: Float32Array, scale: number, dtype: DType): Uint8Array {
  // Scaling by 2^-112 gives a float32 the exponent field of the float16, subnormal numbers included.
  const shift = dtype === "float16" ? 2 ** -112 : 1;
  const scaled = values.map((value) => value * scale * shift);
  const words = new Uint32Array(scaled.buffer);
  const bytes = new Uint8Array(values.length * dtypeBytes(dtype));
  const view = new DataView(bytes.buffer);
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!;
    if (dtype === "float32") view.setUint32(index * 4, word, true);
    else if (dtype === "bfloat16") view.setUint16(index * 2, rounded(word, 16), true);
    else view.setUint16(index * 2, ((word >>> 16) & 0x8000) | rounded(word & 0x7fffffff, 13), true);
  }
  return bytes;
}

/** The word without its last bits, to nearest, ties to even. */
function rounded(word: number, bits: number): number {
  return (word + (2 ** (bits - 1) - 1) + ((word >>> bits) & 1)) >>> bits;
}

/** `count` bytes of `source` from `offset` on, beginning again at its end. */
export function* cycle(source: Uint8Array, offset: number, count: number): Generator<Uint8Array> {
  let begin = offset;
  let left = count;
  while (left > 0) {
    const piece = source.subarray(begin, begin + left);
    yield piece;
    left -= piece.length;
    begin = 0;
  }
}
