import { PassThrough } from "node:stream";
import type { WriteStream } from "node:tty";
import { describe, expect, it } from "vitest";
import { StatusLine } from "../../../cli/status-line.js";

function open(columns: number | null, logMs = 0) {
  const stream = new PassThrough();
  const terminal = columns === null ? {} : { isTTY: true, columns };
  const line = new StatusLine(Object.assign(stream, terminal) as unknown as WriteStream, logMs);
  return { line, written: () => String(stream.read() ?? "") };
}

const show = (line: StatusLine, text: string) =>
  line.show(
    (columns) => text.padEnd(columns, "."),
    () => text,
  );

describe("the status line", () => {
  it("stays below the lines on a terminal, never wider than it, and goes in the end", () => {
    const { line, written } = open(8);
    show(line, "one");
    expect(written()).toBe("\rone....\x1b[K");
    line.print("a line");
    expect(written()).toBe("\r\x1b[Ka line\none....");
    show(line, "longer than wide");
    expect(written()).toBe("\rlonger \x1b[K");
    line.clear();
    expect(written()).toBe("\r\x1b[K");
    line.print("last");
    line.clear();
    expect(written()).toBe("\r\x1b[Klast\n");
  });

  it("is a plain line in a log, no more often than it may", () => {
    const { line, written } = open(null, 60_000);
    show(line, "one");
    show(line, "two");
    line.print("a line");
    line.clear();
    expect(written()).toBe("one\na line\n");
  });
});
