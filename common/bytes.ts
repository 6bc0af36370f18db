/** Raw little-endian arrays as protobuf carries them, and the checksum of an activation message. */
import { endianness } from "node:os";
import { crc32 } from "node:zlib";

if (endianness() !== "LE") throw new Error("GLM Relay runs on little-endian machines only");

export function bytesFromInt32(values: ArrayLike<number>): Buffer {
  return Buffer.from(Int32Array.from(values).buffer);
}

/** @throws RangeError when the length is not a multiple of four. Copies: a message may lie unaligned. */
export function int32FromBytes(bytes: Uint8Array): Int32Array {
  return new Int32Array(alignedCopy(bytes));
}

export function bytesFromFloat32(values: ArrayLike<number>): Buffer {
  return Buffer.from(Float32Array.from(values).buffer);
}

export function float32FromBytes(bytes: Uint8Array): Float32Array {
  return new Float32Array(alignedCopy(bytes));
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
