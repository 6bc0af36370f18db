/** The Range header of a request for bytes (RFC 9110, 14.2): one range, or none. */

/** Inclusive at both ends. */
export interface ByteRange {
  start: number;
  end: number;
}

/**
 * @param size Bytes that there are.
 * @returns Null: all of it, also for what is no range of bytes and for several at once, which a server may answer so.
 */
export function readRange(header: string | undefined, size: number): ByteRange | "unsatisfiable" | null {
  const [, first = "", last = ""] = /^bytes=[ \t]*(\d*)-(\d*)[ \t]*$/i.exec(header ?? "") ?? [];
  if (first === "" && last === "") return null;
  if (first === "") {
    const length = Math.min(Number(last), size);
    return length === 0 ? "unsatisfiable" : { start: size - length, end: size - 1 };
  }
  const start = Number(first);
  if (last !== "" && Number(last) < start) return null;
  if (start >= size) return "unsatisfiable";
  return { start, end: last === "" ? size - 1 : Math.min(Number(last), size - 1) };
}
