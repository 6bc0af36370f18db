import { mkdirSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { BatchClient } from "../../../../cli/batch/client.js";
import { CallError, Patience } from "../../../../cli/batch/retry.js";
import { RunState } from "../../../../cli/batch/run-state.js";
import { newSubmission, runKey, type Submission, submit } from "../../../../cli/batch/submit.js";
import { scratch } from "../support.js";
import { FakeCoordinator, jsonl, requestLine, respond } from "./support.js";

async function setUp(content: string | Buffer = jsonl([requestLine("a"), requestLine("b")])) {
  const fake = await FakeCoordinator.start();
  const input = join(scratch(), 'in "1".jsonl');
  writeFileSync(input, content);
  const saved: Submission[] = [];
  const patience = new Patience(
    new AbortController().signal,
    () => {},
    10_000,
    async () => {},
  );
  const run = (submission = newSubmission(), options = {}) =>
    submit(new BatchClient(fake.url), input, { completion_window: "24h", ...options }, submission, {
      patience,
      save: async (state) => void saved.push({ ...state }),
    });
  return { fake, input, saved, run };
}

describe("a submission", () => {
  it("sends the file as it is and makes a batch of it, which it can find again", async () => {
    const content = jsonl([requestLine("ä"), requestLine("b")]);
    const { fake, saved, run } = await setUp(content);
    const submission = newSubmission();
    const batch = await run(submission, { metadata: { team: "data" }, priority: -3 });
    expect(String(fake.files.get("file-0"))).toBe(content);
    expect(fake.created).toEqual([
      {
        input_file_id: "file-0",
        endpoint: "/v1/completions",
        completion_window: "24h",
        metadata: { team: "data", [runKey]: submission.run },
        priority: -3,
      },
    ]);
    expect(saved).toEqual([
      { run: submission.run, fileId: "file-0", asked: true, batchId: null },
      { run: submission.run, fileId: "file-0", asked: true, batchId: batch.id },
    ]);
  });

  it.each<[string, string | Buffer, string]>([
    [
      "of the first line",
      jsonl([{ ...requestLine("a"), url: "/v1/chat/completions" }]),
      "/v1/chat/completions",
    ],
    [
      "behind a mark, blank lines and what is no line",
      `\uFEFF\r\n\n{}\nx\n${jsonl([requestLine("a")])}`,
      "/v1/completions",
    ],
    ["in a compressed file", gzipSync(jsonl([requestLine("a")])), "/v1/completions"],
    [
      "of a compressed file that is cut off",
      gzipSync(jsonl([requestLine("a")])).subarray(0, -8),
      "/v1/completions",
    ],
    ["of an empty file", "", "/v1/chat/completions"],
    ["of a file that is something else", Buffer.from([0x1f, 0x8b, 1, 2, 3]), "/v1/chat/completions"],
  ])("asks the endpoint %s", async (_, content, endpoint) => {
    const { fake, run } = await setUp(content);
    await run();
    expect(fake.created[0]!.endpoint).toBe(endpoint);
    await run(newSubmission(), { endpoint: "/v1/elsewhere" });
    expect(fake.created[1]!.endpoint).toBe("/v1/elsewhere");
  });

  it("makes one batch although the answer to its making was lost", async () => {
    const { fake, run } = await setUp();
    let lost = 0;
    fake.onCreate = () => {};
    fake.fault = (request, response) => {
      if (request.method !== "POST" || request.url !== "/v1/batches" || lost > 0) return false;
      lost += 1;
      // The batch is made, and the connection breaks before anybody hears of it.
      const { end } = response;
      response.end = (() => response.destroy()) as unknown as typeof end;
      return false;
    };
    const batch = await run();
    expect(lost).toBe(1);
    expect(fake.batches).toHaveLength(1);
    expect(batch.id).toBe("batch_0");
  });

  it("makes one batch although the process ended behind its making, and finds it behind others", async () => {
    const { fake, run } = await setUp();
    const submission = newSubmission();
    const first = await run({ ...submission });
    for (let i = 0; i < 150; i++) await run(newSubmission());
    const again = await run({ ...submission, fileId: "file-0", asked: true });
    expect(again.id).toBe(first.id);
    expect(fake.batches).toHaveLength(151);
  });

  it("sends the file once more when the coordinator has it no longer", async () => {
    const { fake, run } = await setUp();
    const batch = await run({ ...newSubmission(), fileId: "file-gone" });
    expect(fake.batches.map(({ id }) => id)).toEqual([batch.id]);
    expect(fake.files.size).toBe(1);
  });

  it("tries again while the coordinator is away, and not when it refuses", async () => {
    const { fake, run } = await setUp();
    let away = 4;
    fake.fault = (request, response) => {
      if (away === 0) return false;
      away -= 1;
      request.resume();
      if (away % 2 === 0) response.destroy();
      else respond(response, 503, { error: { code: "draining", message: "draining" } });
      return true;
    };
    await run();
    expect(fake.batches).toHaveLength(1);
    fake.fault = (request, response) => {
      // Before the file has come: the answer must be read all the same.
      respond(
        response,
        507,
        { error: { code: "storage_full", message: "no room" } },
        { "x-should-retry": "false" },
      );
      request.resume();
      return true;
    };
    const refused = run().catch((error: unknown) => error);
    expect(await refused).toBeInstanceOf(CallError);
    expect(await refused).toMatchObject({ code: "storage_full", httpStatus: 507, message: "no room" });
  });

  it("names a file that cannot be read, and sends large ones in pieces", async () => {
    const { fake, input, run } = await setUp(
      jsonl(Array.from({ length: 50_000 }, (_, i) => requestLine(`${i}`))),
    );
    await run();
    expect(fake.files.get("file-0")!.length).toBeGreaterThan(4_000_000);
    const folder = `${input}.d`;
    mkdirSync(folder);
    const client = new BatchClient(fake.url);
    const { signal } = new AbortController();
    await expect(client.upload(folder, signal)).rejects.toThrow(/cannot read .*not a regular file/);
    await expect(client.upload(`${input}.none`, signal)).rejects.toThrow(/cannot read .*ENOENT/);
  });
});

describe("the state of a run", () => {
  function files() {
    const folder = scratch();
    const input = join(folder, "in.jsonl");
    writeFileSync(input, jsonl([requestLine("a")]));
    return { input, output: join(folder, "out.jsonl"), state: join(folder, "out.jsonl.batch.json") };
  }

  it("is found by the next run of the same input", async () => {
    const { input, output } = files();
    const first = await RunState.open(input, output);
    expect(first.resumed).toBe(false);
    Object.assign(first.submission, { fileId: "file-1", asked: true, batchId: "batch_1" });
    await first.save();
    const second = await RunState.open(input, output);
    expect(second.resumed).toBe(true);
    expect(second.submission).toEqual(first.submission);
    await second.remove();
    expect((await RunState.open(input, output)).resumed).toBe(false);
  });

  it("is of one input: another, or one that has changed, is refused", async () => {
    const { input, output, state } = files();
    const first = await RunState.open(input, output);
    first.submission.batchId = "batch_1";
    await first.save();
    utimesSync(input, 1, 1);
    await expect(RunState.open(input, output)).rejects.toThrow(
      `${state} belongs to a run of ${input}: that file has changed since. Remove it to begin anew; its batch is batch_1`,
    );
    const other = `${input}2`;
    writeFileSync(other, "");
    await expect(RunState.open(other, output)).rejects.toThrow(`belongs to a run of ${input}: not ${other}`);
  });

  it("does not stand for what something else has written", async () => {
    const { input, output, state } = files();
    for (const text of ["", "{}", "null", '{"version":2}', '{"version":1,"input":{"path":"x"},"run":1}']) {
      writeFileSync(state, text);
      await expect(RunState.open(input, output)).rejects.toThrow(
        /is not what a batch run of this version leaves/,
      );
    }
  });

  it("is not begun where an output is already, or where there is no input", async () => {
    const { input, output } = files();
    writeFileSync(output, "");
    await expect(RunState.open(input, output)).rejects.toThrow(/out\.jsonl exists already: remove it/);
    await expect(RunState.open(`${input}.none`, output)).rejects.toThrow(/cannot read .*ENOENT/);
  });
});
