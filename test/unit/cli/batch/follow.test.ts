import type { ServerResponse } from "node:http";
import { describe, expect, it } from "vitest";
import { BatchClient } from "../../../../cli/batch/client.js";
import { follow } from "../../../../cli/batch/follow.js";
import { Patience } from "../../../../cli/batch/retry.js";
import type { BatchStatus } from "../../../../coordinator/batches/batch.js";
import { emptyBatch, FakeCoordinator, respond } from "./support.js";

const event = (status: BatchStatus) => `data: ${JSON.stringify({ ...emptyBatch("batch_0"), status })}\n\n`;

/** Follows a batch whose every connection is one of these. */
async function followed(
  connections: ((response: ServerResponse) => void)[],
  rest: { silenceMs?: number; cut?: AbortController } = {},
) {
  const fake = await FakeCoordinator.start();
  let connection = 0;
  fake.fault = (_, response) => {
    const serve = connections[Math.min(connection++, connections.length - 1)]!;
    serve(response);
    return true;
  };
  const told: (string | null)[] = [];
  const { signal } = rest.cut ?? new AbortController();
  const patience = new Patience(
    signal,
    (reason) => told.push(reason),
    10_000,
    async () => {},
  );
  const seen: BatchStatus[] = [];
  const done = (async () => {
    const client = new BatchClient(fake.url, null, rest.silenceMs);
    for await (const { status } of follow(client, "batch_0", patience)) seen.push(status);
  })();
  return { seen, told, done, connections: () => connection };
}

const stream = (text: string, then: (response: ServerResponse) => void) => (response: ServerResponse) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(text, () => then(response));
};
const ends = (response: ServerResponse) => response.end();
const breaks = (response: ServerResponse) => setTimeout(() => response.destroy(), 20);

describe("following a batch", () => {
  it("goes on behind connections that end, break in the middle of an event, or are refused for a while", async () => {
    const { seen, told, done, connections } = await followed([
      stream(event("validating"), ends),
      stream(`${event("in_progress")}data: {"id`, breaks),
      (response) => response.destroy(),
      (response) => respond(response, 503, { error: { code: "draining", message: "draining" } }),
      stream(": ping\n\n", breaks),
      stream(event("in_progress") + event("completed"), ends),
    ]);
    await done;
    expect(seen).toEqual(["validating", "in_progress", "in_progress", "completed"]);
    expect(connections()).toBe(6);
    expect(told.filter((reason) => reason === null)).toHaveLength(2);
    expect(told).toContain("draining");
    expect(told.at(-1)).toBeNull();
  });

  it("takes a connection on which nothing comes for one that has broken", async () => {
    const { seen, told, done } = await followed(
      [stream(event("in_progress"), () => {}), stream(event("completed"), ends)],
      { silenceMs: 80 },
    );
    await done;
    expect(seen).toEqual(["in_progress", "completed"]);
    expect(told[0]).toMatch(/silent for 0.08 s/);
  });

  it("lets pings keep a silent connection", async () => {
    const { seen, told, done } = await followed(
      [
        stream(event("in_progress"), (response) => {
          const timer = setInterval(() => response.write(": ping\n\n"), 20);
          setTimeout(() => {
            clearInterval(timer);
            response.end(event("completed"));
          }, 400);
        }),
      ],
      { silenceMs: 200 },
    );
    await done;
    expect(seen).toEqual(["in_progress", "completed"]);
    expect(told).toEqual([]);
  });

  it("ends with what is for good", async () => {
    const { done } = await followed([
      (response) => respond(response, 404, { error: { code: "not_found", message: "no such batch" } }),
    ]);
    await expect(done).rejects.toMatchObject({ code: "not_found", message: "no such batch" });
  });

  it("ends when it is told to, in the middle of a stream", async () => {
    const cut = new AbortController();
    const { seen, done } = await followed([stream(event("in_progress"), () => {})], { cut });
    const ended = done.catch((error: unknown) => error);
    while (seen.length === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    cut.abort(new Error("SIGINT"));
    expect(await ended).toMatchObject({ message: "SIGINT" });
  });
});
