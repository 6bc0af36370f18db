import { describe, expect, it } from "vitest";
import { readServerSentEvents } from "../../../cli/sse.js";

async function read(text: string, chunkBytes: number): Promise<string[]> {
  const bytes = new TextEncoder().encode(text);
  async function* chunks() {
    for (let i = 0; i < bytes.length; i += chunkBytes) yield bytes.subarray(i, i + chunkBytes);
  }
  const events: string[] = [];
  for await (const event of readServerSentEvents(chunks())) events.push(event);
  return events;
}

describe("the reader of server-sent events", () => {
  it("gives the same events wherever the stream is cut", async () => {
    const text =
      ': ping\n\nid: 1\ndata: {"t":"熊猫"}\n\ndata:no space\r\n\r\ndata: a\rdata:  b\r\rdata: [DONE]\n\n';
    const expected = ['{"t":"熊猫"}', "no space", "a\n b", "[DONE]"];
    for (let chunkBytes = 1; chunkBytes <= text.length + 10; chunkBytes++) {
      expect(await read(text, chunkBytes), `chunks of ${chunkBytes}`).toEqual(expected);
    }
  });

  it("drops an event that was cut off", async () => {
    expect(await read("data: whole\n\ndata: torn\n", 7)).toEqual(["whole"]);
    expect(await read("data: whole\n\ndata: torn", 7)).toEqual(["whole"]);
  });

  it("refuses an event without end instead of filling the memory", async () => {
    await expect(read(`data: ${"x".repeat(1_100_000)}`, 65_536)).rejects.toThrow(/above 1 MiB/);
    await expect(read("data: xxxxxxxxxxxxxxxx\n".repeat(80_000), 65_536)).rejects.toThrow(/above 1 MiB/);
  });
});
