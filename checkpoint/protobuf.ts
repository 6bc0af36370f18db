/** The protobuf wire format, as far as reading a file without its schema compiled in needs it. */
import { RelayError } from "../common/errors.js";

export interface Field {
  field: number;
  /** Of a varint; exact up to 2^53, which is beyond every enum, flag and size. Else 0. */
  number: number;
  /** Of a string, bytes, message or fixed-width number (little-endian). Else null. */
  bytes: Uint8Array | null;
}

/**
 * The fields of one message, in order.
 * @param where Names the file (and part) in messages.
 * @throws RelayError invalid_model for a message that ends early or is no protobuf.
 */
export function* readFields(bytes: Uint8Array, where: string): Generator<Field> {
  let position = 0;
  const damaged = (problem: string): never => {
    throw new RelayError("invalid_model", `${where} is damaged: ${problem} at byte ${position}`);
  };
  const varint = (): number => {
    let value = 0;
    for (let scale = 1, length = 1; length <= 10; scale *= 128, length++) {
      const byte = bytes[position++] ?? damaged("it ends within a number");
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    return damaged("a number is longer than 10 bytes");
  };
  while (position < bytes.length) {
    const tag = varint();
    const field = Math.floor(tag / 8);
    if (field < 1 || field >= 2 ** 29) damaged(`field number ${field}`);
    const wireType = tag % 8;
    if (wireType === 0) {
      yield { field, number: varint(), bytes: null };
      continue;
    }
    const fixed = wireType === 1 ? 8 : wireType === 5 ? 4 : null;
    if (fixed === null && wireType !== 2) damaged(`wire type ${wireType}`);
    const length = fixed ?? varint();
    if (length > bytes.length - position) damaged(`a field of ${length} bytes is cut off`);
    yield { field, number: 0, bytes: bytes.subarray(position, position + length) };
    position += length;
  }
}
