import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { freePort } from "../../../../cli/redis.js";
import { eventually, glmRelay, mainScript, scratch } from "../support.js";
import { FakeCoordinator, jsonl, requestLine } from "./support.js";

/** A process needs a while to start on a busy machine. */
const startLimitMs = 15_000;

function files(ids: string[]): { input: string; output: string; state: string } {
  const folder = scratch();
  const input = join(folder, "in.jsonl");
  writeFileSync(input, jsonl(ids.map((id) => requestLine(id))));
  const output = join(folder, "out.jsonl");
  return { input, output, state: `${output}.batch.json` };
}

const idsOf = (text: string): string[] =>
  text
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as { custom_id: string }).custom_id);

/** A command of `batch` in the background. */
function start(args: string[]) {
  const child = spawn(process.execPath, [mainScript, "batch", ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const run = { child, stdout: "", stderr: "" };
  child.stdout.on("data", (data: Buffer) => {
    run.stdout += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    run.stderr += data.toString();
  });
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  return Object.assign(run, { ended });
}

describe("batch run", () => {
  it("submits, waits, writes one line per id in the order of the input, and ends with 0", async () => {
    const fake = await FakeCoordinator.start();
    fake.onCreate = (batch) => fake.finish(batch);
    const { input, output, state } = files(["a", "b", "c"]);
    const result = await glmRelay(["batch", "run", input, output, "--url", fake.url]);
    expect(result).toMatchObject({ status: 0, stdout: "" });
    // On a busy machine the command lasts so long that it tells more often how far the batch is.
    expect(result.stderr).toMatch(
      /^(.+\n)*submitted as batch_0\n(.+\n)*100 %, 3\/3, 0 failed, [\d,]+ tokens\/s\ncompleted: done 3, failed 0 of 3: 6 prompt and 9 completion tokens, 20 s, 1 tokens\/s\n$/,
    );
    const text = readFileSync(output, "utf8");
    expect(idsOf(text)).toEqual(["a", "b", "c"]);
    expect(JSON.parse(text.split("\n")[0]!)).toEqual({
      id: expect.stringMatching(/^batch_req_[0-9a-f]{32}$/),
      custom_id: "a",
      response: {
        status_code: 200,
        request_id: "req-a",
        body: { id: "cmpl-a", usage: { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 } },
      },
      error: null,
    });
    expect(existsSync(state)).toBe(false);
    const again = await glmRelay(["batch", "run", input, output, "--url", fake.url]);
    expect(again.status).toBe(1);
    expect(again.stderr).toContain("out.jsonl exists already: remove it, or choose another output file");
    expect(readFileSync(output, "utf8")).toBe(text);
  });

  it("with --json prints the summary on standard output, and ends with 1 when a line failed", async () => {
    const fake = await FakeCoordinator.start();
    fake.onCreate = (batch) => fake.finish(batch, ["b"]);
    const { input, output } = files(["a", "b", "c"]);
    const result = await glmRelay(["batch", "run", input, output, "--url", fake.url, "--json"]);
    expect(result.status).toBe(1);
    expect(JSON.parse(result.stdout)).toEqual({
      batch: "batch_0",
      status: "completed",
      total: 3,
      done: 2,
      failed: 1,
      remaining: 0,
      prompt_tokens: 4,
      cached_tokens: 0,
      completion_tokens: 6,
      reasoning_tokens: 0,
      seconds: 20,
      tokens_per_second: 0.3,
      errors: [],
      output,
    });
    expect(result.stderr).toContain('1 failed with invalid_value, the first is "b": b is bad\n');
    expect(idsOf(readFileSync(output, "utf8"))).toEqual(["a", "b", "c"]);
  });

  it("hands its options on", async () => {
    const fake = await FakeCoordinator.start();
    fake.onCreate = (batch) => fake.finish(batch);
    const { input, output } = files(["a"]);
    const options = "--window 2h --metadata a=b=c --metadata d= --priority -7 --token-budget 1000";
    const webhook = ["--webhook", "https://hooks.example/x?y=z"];
    const result = await glmRelay([
      ...["batch", "run", input, output, "--url", fake.url, ...options.split(" ")],
      ...webhook,
    ]);
    expect(result.status).toBe(0);
    expect(fake.created[0]).toMatchObject({
      endpoint: "/v1/completions",
      completion_window: "2h",
      metadata: { a: "b=c", d: "" },
      priority: -7,
      token_budget: 1_000,
      webhook: { url: "https://hooks.example/x?y=z" },
    });
  });

  it("names each line that is wrong, as the coordinator found it, and writes nothing", async () => {
    const fake = await FakeCoordinator.start();
    fake.onCreate = (batch) =>
      fake.change(batch, {
        status: "failed",
        failed_at: 1_700_000_001,
        errors: {
          object: "list",
          data: [
            {
              code: "duplicate_custom_id",
              line: 2,
              message: 'custom_id: "a" stands in line 1',
              param: "custom_id",
            },
            { code: "empty_file", line: null, message: "something of the whole", param: null },
          ],
        },
      });
    const { input, output, state } = files(["a", "a"]);
    const result = await glmRelay(["batch", "run", input, output, "--url", fake.url, "--json"]);
    expect(result.status).toBe(1);
    expect(result.stderr).toContain(
      `\n${input}:2: custom_id: "a" stands in line 1\nsomething of the whole\n`,
    );
    expect(JSON.parse(result.stdout)).toMatchObject({
      status: "failed",
      output: null,
      errors: [{ line: 2 }, {}],
    });
    for (const file of [output, state]) expect(existsSync(file)).toBe(false);
  });

  it("ends at SIGINT while the batch goes on, and the printed commands continue and cancel", async () => {
    const fake = await FakeCoordinator.start();
    const { input, output, state } = files(["a", "b"]);
    const run = start(["run", input, output, "--url", fake.url, "--priority", "3"]);
    await eventually(() => fake.requests.includes("GET /v1/batches/batch_0/events"), startLimitMs);
    run.child.kill("SIGINT");
    expect(await run.ended).toBe(1);
    const command = `glm-relay batch run ${input} ${output} --url ${fake.url} --priority 3`;
    const cancel = `glm-relay batch cancel batch_0 --url ${fake.url}`;
    expect(run.stderr).toContain(
      `SIGINT: the batch goes on without this command\nthis continues to watch it:\n  ${command}\nthis cancels it:\n  ${cancel}\n`,
    );
    expect(fake.batches[0]!.status).toBe("validating");
    expect(existsSync(output)).toBe(false);
    expect(existsSync(state)).toBe(true);

    const rest = start(command.split(" ").slice(2));
    await eventually(
      () => fake.requests.filter((line) => line.endsWith("/events")).length === 2,
      startLimitMs,
    );
    fake.finish(fake.batches[0]!);
    expect(await rest.ended).toBe(0);
    expect(rest.stderr).toMatch(/^going on with batch_0\n/);
    expect(fake.batches).toHaveLength(1);
    expect(idsOf(readFileSync(output, "utf8"))).toEqual(["a", "b"]);
    expect(existsSync(state)).toBe(false);
  });

  it("waits for a coordinator that is away, and says so", async () => {
    const fake = await FakeCoordinator.start();
    const { input, output } = files(["a", "b"]);
    const run = start(["run", input, output, "--url", fake.url]);
    await eventually(() => fake.requests.includes("GET /v1/batches/batch_0/events"), startLimitMs);
    await fake.close();
    await eventually(() => run.stderr.includes("waiting for the coordinator: no answer from"), startLimitMs);
    expect(run.child.exitCode).toBeNull();
    await fake.open();
    fake.finish(fake.batches[0]!);
    expect(await run.ended).toBe(0);
    expect(idsOf(readFileSync(output, "utf8"))).toEqual(["a", "b"]);
  });

  it("refuses an output that another run writes, also under another name, until that one is killed", async () => {
    const fake = await FakeCoordinator.start();
    const { input, output } = files(["a"]);
    const run = start(["run", input, output, "--url", fake.url]);
    await eventually(() => fake.requests.includes("GET /v1/batches/batch_0/events"), startLimitMs);
    const second = await glmRelay(["batch", "run", input, output, "--url", fake.url]);
    expect(second.status).toBe(1);
    expect(second.stderr).toBe(
      `error: another run writes ${output}: wait for its end, or choose another output file\n`,
    );
    run.child.kill("SIGKILL");
    await run.ended;
    fake.finish(fake.batches[0]!);
    expect((await glmRelay(["batch", "run", input, output, "--url", fake.url])).status).toBe(0);
    expect(fake.batches).toHaveLength(1);
    expect(idsOf(readFileSync(output, "utf8"))).toEqual(["a"]);
  });

  it("tells at once that nobody listens, and names files that it cannot use", async () => {
    const { input, output } = files(["a"]);
    const url = `http://127.0.0.1:${await freePort()}`;
    const nobody = await glmRelay(["batch", "run", input, output, "--url", url]);
    expect(nobody.stderr).toMatch(/^error: no answer from .*ECONNREFUSED\n$/);
    const folder = join(scratch(), "folder");
    mkdirSync(folder);
    const link = join(folder, "link.jsonl");
    symlinkSync(input, link);
    const refused: [string[], RegExp][] = [
      [[input, folder], /cannot write .*folder is not a regular file/],
      [[input, join(folder, "no", "out.jsonl")], /cannot write .*ENOENT/],
      [[join(folder, "in.jsonl"), output], /cannot read .*in\.jsonl: ENOENT/],
      [[folder, output], /cannot read .*folder: not a regular file/],
      [[input, link], /in\.jsonl exists already/],
    ];
    for (const [args, message] of refused) {
      const result = await glmRelay(["batch", "run", ...args, "--url", url]);
      expect(result.stderr).toMatch(message);
      expect(result.stderr).toMatch(/^error: /);
      expect(result.status).toBe(1);
    }
    expect(existsSync(output)).toBe(false);
  });

  it("says what to do when the coordinator does not know its batch", async () => {
    const fake = await FakeCoordinator.start();
    const { input, output, state } = files(["a"]);
    const run = start(["run", input, output, "--url", fake.url]);
    await eventually(() => fake.requests.includes("GET /v1/batches/batch_0/events"), startLimitMs);
    run.child.kill("SIGKILL");
    await run.ended;
    fake.batches.length = 0;
    const result = await glmRelay(["batch", "run", input, output, "--url", fake.url]);
    expect(result.status).toBe(1);
    expect(result.stderr).toContain(
      `error: the coordinator does not know batch_0 (any more): remove ${state} to begin anew [not_found]\n`,
    );
    // The batch is there, and its answers are not.
    await glmRelay(["batch", "submit", input, "--url", fake.url]);
    const [batch] = fake.batches;
    fake.finish(batch!);
    fake.files.delete(`out-${batch!.id}`);
    const gone = await glmRelay(["batch", "run", input, output, "--url", fake.url]);
    expect(gone.stderr).toContain(
      `error: the answers of batch_0 are gone (no file out-batch_0): remove ${state}`,
    );
  });
});

describe("the commands around a batch", () => {
  it("submit, show, watch, fetch and list it", async () => {
    const fake = await FakeCoordinator.start();
    const { input, output } = files(["a", "b"]);
    const batch = (...args: string[]) => glmRelay(["batch", ...args, "--url", fake.url]);
    expect(await batch("submit", input)).toMatchObject({ status: 0, stdout: "batch_0\n" });
    expect(JSON.parse((await batch("submit", input, "--json")).stdout)).toMatchObject({ id: "batch_1" });
    const [, first] = fake.batches;

    const early = await batch("results", "batch_0", output);
    expect(early.status).toBe(1);
    expect(early.stderr).toContain(`batch_0 is validating: its answers are there when it has ended`);
    expect(early.stderr).toContain(`glm-relay batch wait batch_0 --url ${fake.url}`);

    const watching = start(["wait", "batch_0", "--url", fake.url]);
    await eventually(() => fake.requests.includes("GET /v1/batches/batch_0/events"), startLimitMs);
    fake.finish(first!, ["b"]);
    expect(await watching.ended).toBe(1);
    expect(watching.stderr).toContain("completed: done 1, failed 1 of 2");

    const status = await batch("status", "batch_0");
    expect(status.stdout).toMatch(/^batch {5}batch_0\nstatus {4}completed\n/);
    expect(JSON.parse((await batch("status", "batch_0", "--json")).stdout)).toEqual(first);

    const stdout = await batch("results", "batch_0", "-");
    expect(idsOf(stdout.stdout)).toEqual(["a", "b"]);
    expect(stdout.status).toBe(1);
    expect(JSON.parse((await batch("results", "batch_0", output, "--json")).stdout)).toMatchObject({
      output,
    });
    expect(readFileSync(output, "utf8")).toBe(stdout.stdout);

    expect(await batch("cancel", "batch_1")).toMatchObject({ status: 0, stdout: "batch_1 cancelling\n" });
    const list = await batch("list", "--limit", "1");
    expect(list.stdout).toMatch(/batch_1 +│ +cancelling/);
    expect(list.stdout).not.toContain("batch_0");
    expect(list.stderr).toBe(`more: glm-relay batch list --url ${fake.url} --limit 1 --after batch_1\n`);
    expect(JSON.parse((await batch("list", "--json")).stdout).data).toHaveLength(2);
  });

  it("give a reader of the results what it wants, and no more", async () => {
    const fake = await FakeCoordinator.start();
    const { input } = files(Array.from({ length: 20_000 }, (_, index) => `line ${index}`));
    await glmRelay(["batch", "submit", input, "--url", fake.url]);
    fake.finish(fake.batches[0]!);
    const reader = start(["results", "batch_0", "-", "--url", fake.url]);
    reader.child.stdout.once("data", () => reader.child.stdout.destroy());
    expect(await reader.ended).toBe(0);
    expect(reader.stderr).not.toContain("error");
  });

  it("name what is not known, and nobody who listens", async () => {
    const fake = await FakeCoordinator.start();
    const nobody = `http://127.0.0.1:${await freePort()}`;
    const { input, output } = files(["a"]);
    for (const args of [
      ["status", "x"],
      ["wait", "x"],
      ["cancel", "x"],
      ["results", "x", output],
    ]) {
      const unknown = await glmRelay(["batch", ...args, "--url", fake.url]);
      expect(unknown).toMatchObject({ status: 1, stderr: 'error: id: "x" is not known [not_found]\n' });
      const away = await glmRelay(["batch", ...args, "--url", nobody]);
      expect(away.stderr).toMatch(/^error: no answer from .*: ECONNREFUSED\n$/);
    }
    const submit = await glmRelay(["batch", "submit", `${input}.none`, "--url", fake.url]);
    expect(submit.stderr).toMatch(/error: cannot read .*ENOENT/);
  });

  it("leave a batch that is watched alone when they are ended", async () => {
    const fake = await FakeCoordinator.start();
    const { input } = files(["a"]);
    await glmRelay(["batch", "submit", input, "--url", fake.url]);
    const watching = start(["wait", "batch_0", "--url", fake.url]);
    await eventually(() => fake.requests.includes("GET /v1/batches/batch_0/events"), startLimitMs);
    watching.child.kill("SIGTERM");
    expect(await watching.ended).toBe(1);
    expect(watching.stderr).toContain(
      `this continues to watch it:\n  glm-relay batch wait batch_0 --url ${fake.url}\n`,
    );
    expect(fake.requests.some((line) => line.includes("cancel"))).toBe(false);
  });
});
