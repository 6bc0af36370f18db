/** Reads server-sent events from a byte stream: as much of the standard as an API stream needs. */

/** A longer event is not one of ours. */
const eventCharsMax = 1024 * 1024;

/**
 * Yields the data of each event; comments, other fields and a torn last event are dropped.
 * Lines may end in LF, CRLF or CR, and chunks may be cut anywhere, also inside a character.
 */
export async function* readServerSentEvents(stream: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let pending = "";
  let data: string[] = [];
  let dataChars = 0;
  for await (const chunk of stream) {
    pending += decoder.decode(chunk, { stream: true });
    // A CR at the very end may be the first half of a CRLF, so it waits for the next chunk.
    const lines = pending.split(/\r\n|\n|\r(?!$)/);
    pending = lines.pop()!;
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) yield data.join("\n");
        data = [];
        dataChars = 0;
      } else if (line === "data" || line.startsWith("data:")) {
        const value = line.slice("data:".length).replace(/^ /, "");
        data.push(value);
        dataChars += value.length;
      }
    }
    if (pending.length + dataChars > eventCharsMax) throw new Error("the server sent an event above 1 MiB");
  }
  // A last blank line may have been held back as half of a CRLF.
  if (pending === "\r" && data.length > 0) yield data.join("\n");
}
