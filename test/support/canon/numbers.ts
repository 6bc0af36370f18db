/** float32 arithmetic in JavaScript, for the canon written again (model.ts). */

export const f32 = Math.fround;

/**
 * Fused multiply-add. The product of two float32 is exact in float64; the sum is rounded twice, which
 * differs from one rounding for about one result in 10^8.
 */
export const fma = (a: number, b: number, c: number): number => f32(a * b + c);

/** To the nearest integer, ties to even. */
export function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

const scratch = new DataView(new ArrayBuffer(4));

function halfValue(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 0x3ff;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * mantissa * 2 ** -24 : sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** The nearest float16. */
export function half(x: number): number {
  const magnitude = Math.abs(x);
  if (!(magnitude > 0)) return x;
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude)));
  const step = 2 ** (exponent - 10);
  const rounded = roundEven(magnitude / step) * step;
  return Math.sign(x) * (rounded >= 65520 ? Number.POSITIVE_INFINITY : rounded);
}

/** The nearest bfloat16. */
export function bfloat(x: number): number {
  scratch.setFloat32(0, x);
  const bits = scratch.getUint32(0);
  scratch.setUint32(0, (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000);
  return scratch.getFloat32(0);
}

/** Values of a float32, float16 or bfloat16 tensor. */
export function decode(bytes: Buffer, dtype: "float32" | "float16" | "bfloat16"): Float32Array {
  if (dtype === "float32")
    return Float32Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i));
  return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
    const bits = bytes.readUInt16LE(2 * i);
    if (dtype === "float16") return halfValue(bits);
    scratch.setUint32(0, (bits << 16) >>> 0);
    return scratch.getFloat32(0);
  });
}

/** exp as the canon has it. */
export function exp(value: number): number {
  const x = Math.min(Math.max(value, -104), 89);
  const shifted = fma(x, f32(Math.LOG2E), 12582912);
  const n = f32(shifted - 12582912);
  let r = fma(n, f32(-0.693359375), x);
  r = fma(n, f32(2.1219444e-4), r);
  let p = f32(1.98756915e-4);
  for (const c of [1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1]) {
    p = fma(p, r, f32(c));
  }
  p = f32(fma(p, f32(r * r), r) + 1);
  const first = n >> 1;
  return f32(f32(p * 2 ** first) * 2 ** (n - first));
}

/** The 16-lane sum: element i in lane i mod 16, then halves added. */
export function treeSum(lanes: Float32Array): number {
  const sums = Float32Array.from(lanes);
  for (let width = 8; width > 0; width >>= 1) {
    for (let i = 0; i < width; i++) sums[i] = sums[i]! + sums[i + width]!;
  }
  return sums[0]!;
}
