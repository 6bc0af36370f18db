/** Raw little-endian arrays as protobuf carries them, and the checksum of an activation message. */
import { endianness } from "node:os";
import { crc32 } from "node:zlib";

if (endianness() !== "LE") throw new Error("GLM Relay runs on little-endian machines only");

/**
 * Most arrays of a header are empty or one value long, and memory of its own would cost such an array more
 * than all that is done with it: empty ones are shared, short ones come out of Node's pool.
 */
const noBytes = Buffer.alloc(0);
const noInt32s = new Int32Array(0);
const noFloat32s = new Float32Array(0);
/** Longer ones are copied at once. */
const shortLength = 32;

/** @param values Within int32. */
export function bytesFromInt32(values: ArrayLike<number>): Buffer {
  const { length } = values;
  if (length === 0) return noBytes;
  if (length > shortLength) return Buffer.from(Int32Array.from(values).buffer);
  const bytes = Buffer.allocUnsafe(4 * length);
  for (let index = 0; index < length; index++) bytes.writeInt32LE(values[index]!, 4 * index);
  return bytes;
}

/** @throws RangeError when the length is not a multiple of four. Copies: a message may lie unaligned. */
export function int32FromBytes(bytes: Uint8Array): Int32Array {
  return bytes.byteLength === 0 ? noInt32s : new Int32Array(alignedCopy(bytes));
}

export function bytesFromFloat32(values: ArrayLike<number>): Buffer {
  return values.length === 0 ? noBytes : Buffer.from(Float32Array.from(values).buffer);
}

export function float32FromBytes(bytes: Uint8Array): Float32Array {
  return bytes.byteLength === 0 ? noFloat32s : new Float32Array(alignedCopy(bytes));
}

/** CRC-32 (the polynomial of zlib), unsigned. */
export function checksum(bytes: Uint8Array): number {
  return crc32(bytes);
}

function alignedCopy(bytes: Uint8Array): ArrayBuffer {
  if (bytes.byteLength % 4 !== 0) {
    throw new RangeError(`${bytes.byteLength} bytes are not a whole number of 32-bit values`);
  }
  const copy = new ArrayBuffer(bytes.byteLength);
  new Uint8Array(copy).set(bytes);
  return copy;
}
