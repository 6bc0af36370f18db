import { spawn } from "node:child_process";
import { appendFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import type { ServerResponse } from "node:http";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { freePort } from "../../../../cli/redis.js";
import { eventually, glmRelay, mainScript, scratch } from "../support.js";
import { complete, jsonl, outputLine, requestLine, respond, serveCompletions } from "./support.js";

/** A process needs a while to start on a busy machine. */
const startLimitMs = 15_000;

function files(ids: string[]): { input: string; output: string } {
  const folder = scratch();
  const input = join(folder, "in.jsonl");
  writeFileSync(input, jsonl(ids.map((id) => requestLine(id))));
  return { input, output: join(folder, "out.jsonl") };
}

const idsOf = (output: string): string[] =>
  readFileSync(output, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => (JSON.parse(line) as { custom_id: string }).custom_id);

/** A server that answers nothing until it is told to. */
async function holdingServer() {
  const held: { user: unknown; response: ServerResponse }[] = [];
  const url = await serveCompletions(({ user }, response) => void held.push({ user, response }));
  return { url, held };
}

/** `batch run` in the background. */
function startRun(args: string[]) {
  const child = spawn(process.execPath, [mainScript, "batch", "run", ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  onTestFinished(() => void child.kill("SIGKILL"));
  const run = { child, stderr: "" };
  child.stderr.on("data", (data: Buffer) => {
    run.stderr += data.toString();
  });
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  return Object.assign(run, { ended });
}

describe("batch run", () => {
  it("answers every line, prints progress and summary on standard error and ends with 0", async () => {
    const url = await serveCompletions((body, response) => complete(response, body.user));
    const { input, output } = files(["a", "b", "c"]);
    const result = await glmRelay(["batch", "run", input, output, "--url", url]);
    expect(result.stderr).toMatch(
      /^100 %, 3\/3, 0 failed, \d+ tokens\/s\ndone 3, failed 0, skipped 0: 6 prompt and 9 completion tokens, .+\n$/,
    );
    expect(result).toMatchObject({ status: 0, stdout: "" });
    expect(idsOf(output).sort()).toEqual(["a", "b", "c"]);
    expect(JSON.parse(readFileSync(output, "utf8").split("\n")[0]!)).toEqual({
      id: expect.stringMatching(/^batch_req_[0-9a-f]{24}$/),
      custom_id: expect.any(String),
      response: {
        status_code: 200,
        request_id: "req-test",
        body: {
          id: expect.stringMatching(/^cmpl-[abc]$/),
          usage: { prompt_tokens: 2, completion_tokens: 3 },
        },
      },
      error: null,
    });
  });

  it("with --json prints the summary on standard output, and ends with 1 when a line failed", async () => {
    const url = await serveCompletions(({ user }, response) => {
      if (user === "b") respond(response, 400, { error: { message: "b is bad", code: "invalid_value" } });
      else complete(response, user);
    });
    const { input, output } = files(["a", "b"]);
    const result = await glmRelay(["batch", "run", input, output, "--url", url, "--json"]);
    expect(result.status).toBe(1);
    expect(JSON.parse(result.stdout)).toMatchObject({
      total: 2,
      done: 1,
      failed: 1,
      skipped: 0,
      remaining: 0,
      retries: 0,
      prompt_tokens: 2,
      completion_tokens: 3,
    });
    expect(result.stderr).toContain('1 failed with invalid_value, the first is "b": b is bad\n');
    // A refusal is final: the next run has nothing to do and says the same.
    const again = await glmRelay(["batch", "run", input, output, "--url", url, "--json"]);
    expect(again.status).toBe(1);
    expect(JSON.parse(again.stdout)).toMatchObject({ done: 1, failed: 1, skipped: 2, remaining: 0 });
  });

  it("tries again when the coordinator is loading or the connection breaks", async () => {
    const seen: unknown[] = [];
    const url = await serveCompletions(({ user }, response) => {
      seen.push(user);
      const first = seen.filter((id) => id === user).length === 1;
      if (first && user === "a") response.destroy();
      else if (first && user === "b") {
        respond(response, 503, { error: { code: "model_loading" } }, { "retry-after-ms": "1" });
      } else complete(response, user);
    });
    const { input, output } = files(["a", "b", "c"]);
    const result = await glmRelay(["batch", "run", input, output, "--url", url, "--json"]);
    expect(result.status).toBe(0);
    expect(JSON.parse(result.stdout)).toMatchObject({ done: 3, failed: 0, retries: 2 });
    expect(idsOf(output).sort()).toEqual(["a", "b", "c"]);
  });

  it("sends nothing when a line is wrong, and names each one", async () => {
    const asked: unknown[] = [];
    const url = await serveCompletions((body, response) => {
      asked.push(body);
      complete(response, "x");
    });
    const { input, output } = files(["a", "a", "b"]);
    appendFileSync(input, "{\n");
    const result = await glmRelay(["batch", "run", input, output, "--url", url]);
    expect(result.status).toBe(1);
    const [first, second, last] = result.stderr.trimEnd().split("\n");
    expect(first).toBe(`${input}:2: custom_id: "a" stands in line 1 already, expected one of its own`);
    expect(second).toMatch(/in\.jsonl:4: not JSON/);
    expect(last).toBe(`error: 2 lines of ${input} cannot be sent, so nothing was sent`);
    expect(asked).toEqual([]);
    expect(() => readFileSync(output)).toThrow(/ENOENT/);
  });

  it("stops at SIGINT: what runs is written, the rest is left, and the printed command continues", async () => {
    const { url, held } = await holdingServer();
    const { input, output } = files(["a", "b", "c", "d"]);
    const run = startRun([input, output, "--url", url, "--concurrency", "2"]);
    await eventually(() => held.length === 2, startLimitMs);
    run.child.kill("SIGINT");
    await eventually(() => run.stderr.includes("SIGINT: waiting up to 20 s"), startLimitMs);
    for (const { user, response } of held) complete(response, user);
    expect(await run.ended).toBe(1);
    expect(idsOf(output).sort()).toEqual(["a", "b"]);
    const command = `glm-relay batch run ${input} ${output} --url ${url} --concurrency 2`;
    expect(run.stderr).toContain(`2 of 4 are left; this continues:\n  ${command}\n`);

    const rest = glmRelay(command.split(" ").slice(1));
    await eventually(() => held.length === 4, startLimitMs);
    for (const { user, response } of held.slice(2)) complete(response, user);
    const result = await rest;
    expect(result.stderr).toMatch(/^2 of 4 stand in .*out\.jsonl already\n/);
    expect(result.stderr).toMatch(/^done 4, failed 0, skipped 2: 8 prompt and 12 completion tokens/m);
    expect(result.status).toBe(0);
    expect(idsOf(output).sort()).toEqual(["a", "b", "c", "d"]);
  });

  it("refuses an output that another run writes, also under another name, until that one is killed", async () => {
    const { url, held } = await holdingServer();
    const { input, output } = files(["a"]);
    const run = startRun([input, output, "--url", url]);
    await eventually(() => held.length === 1, startLimitMs);
    const link = join(scratch(), "link.jsonl");
    symlinkSync(output, link);
    const second = await glmRelay(["batch", "run", input, link, "--url", url]);
    expect(second.status).toBe(1);
    expect(second.stderr).toBe(
      `error: another run writes ${output}: wait for its end, or choose another output file\n`,
    );
    run.child.kill("SIGKILL");
    await run.ended;
    const third = glmRelay(["batch", "run", input, link, "--url", url]);
    await eventually(() => held.length === 2, startLimitMs);
    complete(held[1]!.response, "a");
    expect((await third).status).toBe(0);
    expect(idsOf(output)).toEqual(["a"]);
  });

  it("tells at once that nobody listens, and names files that it cannot use", async () => {
    const { input, output } = files(["a"]);
    const url = `http://127.0.0.1:${await freePort()}`;
    const nobody = await glmRelay(["batch", "run", input, output, "--url", url]);
    expect(nobody.stderr).toMatch(/^error: no answer from .*ECONNREFUSED\n$/);
    const folder = join(scratch(), "folder");
    mkdirSync(folder);
    const refused: [string[], RegExp][] = [
      [[input, folder], /cannot write .*folder is not a regular file/],
      [[input, join(folder, "no", "out.jsonl")], /cannot write .*ENOENT/],
      [[join(folder, "in.jsonl"), output], /cannot read .*in\.jsonl: ENOENT/],
      [[input, input], /in\.jsonl:1: not a line of a batch's output/],
    ];
    for (const [args, message] of refused) {
      const result = await glmRelay(["batch", "run", ...args, "--url", url]);
      expect(result.stderr).toMatch(message);
      expect(result.stderr).toMatch(/^error: /);
      expect(result.status).toBe(1);
    }
    writeFileSync(output, jsonl([outputLine("stranger")]));
    const stranger = await glmRelay(["batch", "run", input, output, "--url", url]);
    expect(stranger.stderr).toMatch(/out\.jsonl:1: custom_id "stranger" is not in .*in\.jsonl/);
    expect(readFileSync(output, "utf8")).toBe(jsonl([outputLine("stranger")]));
  });
});
