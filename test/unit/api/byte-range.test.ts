import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { readRange } from "../../../coordinator/api/byte-range.js";

describe("ranges of bytes", () => {
  it.each([
    ["bytes=0-0", 10, { start: 0, end: 0 }],
    ["bytes=2-5", 10, { start: 2, end: 5 }],
    ["bytes=2-500", 10, { start: 2, end: 9 }],
    ["bytes=9-", 10, { start: 9, end: 9 }],
    ["bytes=-3", 10, { start: 7, end: 9 }],
    ["bytes=-30", 10, { start: 0, end: 9 }],
    ["Bytes= 1-2 ", 10, { start: 1, end: 2 }],
    ["bytes=10-", 10, "unsatisfiable"],
    ["bytes=10-20", 10, "unsatisfiable"],
    ["bytes=99999999999999999999-", 10, "unsatisfiable"],
    ["bytes=-0", 10, "unsatisfiable"],
    ["bytes=0-", 0, "unsatisfiable"],
    ["bytes=-1", 0, "unsatisfiable"],
    ["bytes=5-2", 10, null],
    ["bytes=0-1,3-4", 10, null],
    ["bytes=-", 10, null],
    ["bytes=a-b", 10, null],
    ["bytes 0-1", 10, null],
    ["lines=0-1", 10, null],
    ["bytes=0x1-2", 10, null],
    ["bytes=+1-2", 10, null],
    ["bytes=1.0-2", 10, null],
    [undefined, 10, null],
    ["", 10, null],
  ] as const)("%j of %i bytes", (header, size, expected) => {
    expect(readRange(header, size)).toEqual(expected);
  });

  it("always lie within the file, and are what a slice would give", () => {
    const position = fc.option(fc.nat(40), { nil: "" as const });
    fc.assert(
      fc.property(position, position, fc.nat(30), (first, last, size) => {
        const range = readRange(`bytes=${first}-${last}`, size);
        if (range === null) {
          expect(first === "" ? last === "" : last !== "" && last < first).toBe(true);
          return;
        }
        const all = Array.from({ length: size }, (_, i) => i);
        const wanted =
          first === ""
            ? last === 0
              ? []
              : all.slice(-last)
            : all.slice(first, last === "" ? undefined : last + 1);
        if (range === "unsatisfiable") expect(wanted).toEqual([]);
        else expect(all.slice(range.start, range.end + 1)).toEqual(wanted);
        if (range !== "unsatisfiable") expect(range.start).toBeLessThanOrEqual(range.end);
      }),
    );
  });

  it("read whatever stands in the header without complaint", () => {
    fc.assert(
      fc.property(fc.string(), fc.nat(), (text, size) => {
        for (const header of [text, `bytes=${text}`]) readRange(header, size);
      }),
    );
  });
});
