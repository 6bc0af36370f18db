import { setImmediate as nextTurn } from "node:timers/promises";
import { describe, expect, it } from "vitest";
import type { Attempt } from "../../../../cli/batch/client.js";
import type { BatchRequest } from "../../../../cli/batch/request-line.js";
import type { Earlier } from "../../../../cli/batch/resume.js";
import { attemptsMax } from "../../../../cli/batch/retry.js";
import { BatchRun, type RunPorts } from "../../../../cli/batch/run.js";
import { formatSummary, summarize } from "../../../../cli/batch/summary.js";

const answered: Attempt = {
  response: {
    status_code: 200,
    request_id: "r",
    body: { usage: { prompt_tokens: 2, completion_tokens: 3 } },
  },
  error: null,
  again: false,
  retryAfterMs: null,
};
const refused = (status: number, code: string, again: boolean): Attempt => ({
  response: { status_code: status, request_id: "r", body: { error: { code, message: `it is ${code}` } } },
  error: null,
  again,
  retryAfterMs: null,
});
const away = refused(503, "model_loading", true);

const noEarlier = (): Earlier => ({
  settled: new Set(),
  done: 0,
  failed: 0,
  usage: { promptTokens: 0, completionTokens: 0 },
});

/** A run whose world answers at once: `send` decides per custom_id and attempt, from 1. */
function start(
  ids: string[],
  send: (id: string, attempt: number, signal: AbortSignal) => Attempt | Promise<Attempt>,
  options: {
    concurrency?: number;
    earlier?: Earlier;
    append?: RunPorts["append"];
    pause?: () => void;
  } = {},
) {
  const lines: { custom_id: string; response: any; error: any }[] = [];
  const attempts = new Map<string, number>();
  const pauses: number[] = [];
  const load = { now: 0, most: 0 };
  async function* requests(): AsyncGenerator<BatchRequest> {
    for (const customId of ids) yield { customId, url: "/v1/completions", body: "{}" };
  }
  const ports: RunPorts = {
    async send({ customId }, signal) {
      const number = (attempts.get(customId) ?? 0) + 1;
      attempts.set(customId, number);
      load.now += 1;
      load.most = Math.max(load.most, load.now);
      await nextTurn();
      const attempt = await send(customId, number, signal);
      load.now -= 1;
      return attempt;
    },
    append: options.append ?? (async (line) => void lines.push(JSON.parse(line))),
    pause: async (ms, signal) => {
      pauses.push(ms);
      options.pause?.();
      signal.throwIfAborted();
    },
  };
  const run = new BatchRun(ports, options.earlier ?? noEarlier(), options.concurrency ?? 4, ids.length);
  return { run, finished: run.run(requests()), lines, attempts, pauses, load };
}

const ids = Array.from({ length: 20 }, (_, index) => `id-${index}`);

describe("a run over a batch", () => {
  it("sends so many at once and writes one line per request", async () => {
    const { run, finished, lines, load } = start(ids, () => answered);
    await finished;
    expect(lines.map((line) => line.custom_id).sort()).toEqual([...ids].sort());
    expect(lines.every((line) => line.response.status_code === 200 && line.error === null)).toBe(true);
    expect(load.most).toBe(4);
    expect(run.counts).toEqual({
      total: 20,
      done: 20,
      failed: 0,
      skipped: 0,
      retries: 0,
      usage: { promptTokens: 40, completionTokens: 60 },
    });
    expect(run.remaining).toBe(0);
  });

  it("tries what may pass again and counts it, and takes a refusal as the answer", async () => {
    const { run, finished, lines, attempts, pauses } = start(["a", "b", "c"], (id, attempt) => {
      if (id === "a") return attempt < 4 ? { ...away, retryAfterMs: 30_000 } : answered;
      return id === "b" ? refused(400, "invalid_value", false) : answered;
    });
    await finished;
    expect(Object.fromEntries(attempts)).toEqual({ a: 4, b: 1, c: 1 });
    expect(pauses).toHaveLength(3);
    expect(Math.min(...pauses)).toBeGreaterThanOrEqual(30_000);
    expect(run.counts).toMatchObject({ done: 2, failed: 1, retries: 3 });
    expect(lines.find((line) => line.custom_id === "b")?.response).toEqual(
      refused(400, "invalid_value", false).response,
    );
    expect([...run.failures]).toEqual([
      ["invalid_value", { count: 1, customId: "b", message: "it is invalid_value" }],
    ]);
  });

  it("knows a time left while answers arrive, none before the first and none while all requests pause", async () => {
    const seen: { [id: string]: boolean } = {};
    const { run, finished } = start(
      ["a", "b", "c"],
      (id, attempt) => {
        seen[`${id}${attempt}`] = run.progress().secondsLeft !== null;
        return id === "b" && attempt === 1 ? away : answered;
      },
      { concurrency: 1, pause: () => (seen.pause = run.progress().secondsLeft !== null) },
    );
    await finished;
    expect(seen).toEqual({ a1: false, b1: true, pause: false, b2: true, c1: true });
    expect(run.progress()).toMatchObject({ total: 3, done: 3, failed: 0, pausing: null, secondsLeft: null });
  });

  it("sends only what an earlier run left open, and counts both", async () => {
    const earlier: Earlier = {
      settled: new Set(["id-0", "id-7"]),
      done: 1,
      failed: 1,
      usage: { promptTokens: 10, completionTokens: 100 },
    };
    const { run, finished, lines } = start(ids, () => answered, { earlier });
    await finished;
    expect(lines).toHaveLength(18);
    expect(summarize(run)).toMatchObject({
      total: 20,
      done: 19,
      failed: 1,
      skipped: 2,
      remaining: 0,
      prompt_tokens: 46,
      completion_tokens: 154,
    });
    expect(formatSummary(summarize(run))).toMatch(
      /^done 19, failed 1, skipped 2: 46 prompt and 154 completion tokens, \d/,
    );
  });

  it("writes a request that uses up its attempts as failed while others are answered", async () => {
    const { run, finished, lines, attempts } = start(ids, (id) => (id === "id-3" ? away : answered), {
      concurrency: 2,
    });
    await finished;
    expect(attempts.get("id-3")).toBe(attemptsMax);
    expect(lines).toHaveLength(20);
    expect(run.counts).toMatchObject({ done: 19, failed: 1, retries: attemptsMax - 1 });
  });

  it("ends early when nothing is answered any more, and leaves the rest for another run", async () => {
    const { run, finished, lines, attempts } = start(ids, () => away);
    await finished;
    expect(run.outage).toBe("it is model_loading");
    expect(attempts.size).toBe(4);
    expect(Math.max(...attempts.values())).toBe(attemptsMax);
    expect(lines.length).toBeGreaterThan(0);
    expect(run.remaining).toBe(20 - lines.length);
  });

  it("takes nothing more when it drains, writes what is being answered and drops what pauses", async () => {
    let release: () => void = () => undefined;
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    const { run, finished, lines, attempts } = start(
      ids,
      async (id) => {
        await held;
        return id === "id-0" ? away : answered;
      },
      { concurrency: 3 },
    );
    run.drain();
    release();
    await finished;
    const taken = [...attempts.keys()];
    expect(lines.map((line) => line.custom_id).sort()).toEqual(taken.filter((id) => id !== "id-0").sort());
    expect(run.remaining).toBe(20 - lines.length);
    expect(taken.length).toBeLessThanOrEqual(3);
  });

  it("stops with the error when a line cannot be written, and cuts what runs", async () => {
    let written = 0;
    const { run, finished, attempts } = start(
      ids,
      (id, _, signal) =>
        id === "id-0"
          ? new Promise((resolve) => signal.addEventListener("abort", () => resolve(away)))
          : answered,
      {
        append: async () => {
          written += 1;
          if (written === 5) throw new Error("disk full");
        },
      },
    );
    await expect(finished).rejects.toThrow("disk full");
    expect(run.counts.done).toBeLessThan(ids.length);
    expect(attempts.get("id-0")).toBe(1);
  });

  it("writes an error in place of a response that has no end to its depth", async () => {
    const deep = JSON.parse(`${"[".repeat(1e5)}${"]".repeat(1e5)}`) as unknown;
    const { run, finished, lines } = start(["a"], () => ({
      ...answered,
      response: { status_code: 200, request_id: null, body: deep },
    }));
    await finished;
    expect(lines[0]).toMatchObject({
      response: null,
      error: { code: "invalid_response", message: "the response is nested too deeply" },
    });
    expect(run.counts).toMatchObject({ done: 0, failed: 1 });
  });
});
