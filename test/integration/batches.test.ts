import { createReadStream, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { packageRoot } from "../../common/package.js";
import { demoModel, TestCluster, TestProcess, until } from "../support/cluster.js";

const main = join(packageRoot, "dist/cli/main.js");
const limitMs = 120_000;

const chatLine = (id: string, body: object = {}) => ({
  custom_id: id,
  method: "POST",
  url: "/v1/chat/completions",
  body: { messages: [{ role: "user", content: "What is the capital of France?" }], max_tokens: 8, ...body },
});
const jsonl = (lines: unknown[]) => lines.map((line) => `${JSON.stringify(line)}\n`).join("");

describe("files and batches of a running cluster", () => {
  let cluster: TestCluster;
  let client: OpenAI;
  let folder: string;
  let hook: Awaited<ReturnType<typeof startHook>>;
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "glm-relay-batches-"));
    hook = await startHook();
    cluster = await TestCluster.start({
      model: demoModel,
      stages: 2,
      data: join(folder, "data"),
      files: ["--webhook-hosts", `127.0.0.1:${hook.port}`],
    });
    client = new OpenAI({ baseURL: `${cluster.url}/v1`, apiKey: "none", maxRetries: 0 });
  }, limitMs);
  afterAll(async () => {
    await cluster?.stop();
    hook?.close();
    rmSync(folder, { recursive: true, force: true });
  });
  beforeEach(() => cluster.revive());

  function write(name: string, content: string): string {
    const file = join(folder, name);
    writeFileSync(file, content);
    return file;
  }

  async function submit(content: string, rest: object = {}): Promise<OpenAI.Batch> {
    const file = await client.files.create({
      file: createReadStream(write("input.jsonl", content)),
      purpose: "batch",
    });
    return client.batches.create({
      input_file_id: file.id,
      endpoint: "/v1/chat/completions",
      completion_window: "24h",
      ...rest,
    });
  }

  const ended = new Set(["completed", "failed", "expired", "cancelled"]);
  const end = (id: string) =>
    until(
      `the end of ${id}`,
      async () => {
        const batch = await client.batches.retrieve(id);
        return ended.has(batch.status) ? batch : null;
      },
      limitMs,
    );
  const contentOf = async (id: string | undefined) => {
    const text = await (await client.files.content(id!)).text();
    return text
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
  };
  const batchCommand = (...args: string[]) =>
    new TestProcess("batch", process.execPath, [main, "batch", ...args, "--url", cluster.url]);

  it(
    "are driven by the official client: upload, create, retrieve, content, delete",
    async () => {
      const lines = [
        chatLine("a", { temperature: 0 }),
        chatLine("b", { max_tokens: 0 }),
        chatLine("c", { seed: 3 }),
      ];
      const made = await submit(jsonl(lines), { metadata: { team: "data" } });
      expect(made).toMatchObject({ object: "batch", metadata: { team: "data" }, output_file_id: null });
      const batch = await end(made.id);
      expect(batch).toMatchObject({
        status: "completed",
        endpoint: "/v1/chat/completions",
        request_counts: { total: 3, completed: 2, failed: 1 },
      });
      expect(batch.usage!.output_tokens).toBeGreaterThan(0);
      const output = await contentOf(batch.output_file_id);
      expect(output.map(({ custom_id }) => custom_id)).toEqual(["a", "c"]);
      expect(output[0].response.body.choices[0].message.content).toMatch(/Paris/);
      const [refused] = await contentOf(batch.error_file_id);
      expect(refused).toMatchObject({
        custom_id: "b",
        response: { status_code: 400, body: { error: { param: "max_tokens" } } },
      });
      const file = await client.files.retrieve(batch.output_file_id!);
      expect(file).toMatchObject({ object: "file", purpose: "batch_output" });
      expect(await client.files.delete(file.id)).toMatchObject({ id: file.id, deleted: true });
      await expect(client.files.content(file.id)).rejects.toThrow(OpenAI.NotFoundError);
    },
    limitMs,
  );

  it(
    "are listed page by page, newest first",
    async () => {
      const content = jsonl([chatLine("a", { max_tokens: 1 })]);
      const made: string[] = [];
      for (let i = 0; i < 5; i++) made.push((await submit(content)).id);
      for (const id of made) await end(id);
      const seen: string[] = [];
      for await (const { id } of client.batches.list({ limit: 2 })) seen.push(id);
      expect(seen.slice(0, 5)).toEqual(made.toReversed());
      expect(new Set(seen).size).toBe(seen.length);
      const files: string[] = [];
      for await (const { id } of client.files.list({ limit: 3 })) files.push(id);
      expect(new Set(files).size).toBe(files.length);
      expect(files.length).toBeGreaterThan(8);
    },
    limitMs,
  );

  it(
    "can be cancelled once: what is answered stays, the rest is told",
    async () => {
      const lines = Array.from({ length: 100 }, (_, index) =>
        chatLine(`line ${index}`, { max_tokens: 2 + 4 * index, ignore_eos: true }),
      );
      const { id } = await submit(jsonl(lines));
      await until(
        "some answers",
        async () => (await client.batches.retrieve(id)).request_counts!.completed >= 3,
      );
      expect((await client.batches.cancel(id)).status).toMatch(/cancelling|cancelled/);
      const batch = await end(id);
      expect(batch.status).toBe("cancelled");
      const output = await contentOf(batch.output_file_id);
      const errors = await contentOf(batch.error_file_id);
      expect(output.length).toBeGreaterThanOrEqual(3);
      expect(errors.every(({ error }) => error.code === "batch_cancelled")).toBe(true);
      const ids = [...output, ...errors].map(({ custom_id }) => custom_id);
      expect(ids.toSorted()).toEqual(lines.map(({ custom_id }) => custom_id).toSorted());
      await expect(client.batches.cancel(id)).rejects.toThrow(OpenAI.ConflictError);
    },
    limitMs,
  );

  it(
    "name what is wrong with a request or a line",
    async () => {
      await expect(submit("x", { endpoint: "/v1/embeddings" })).rejects.toThrow(
        /endpoint: "\/v1\/embeddings"/,
      );
      await expect(submit("x", { completion_window: "never" })).rejects.toThrow(/completion_window: "never"/);
      await expect(submit("x", { input_file_id: "file-none" })).rejects.toThrow(OpenAI.NotFoundError);
      await expect(submit("x", { input_file_id: "../../etc/passwd" })).rejects.toThrow(/passwd/);
      const elsewhere = { webhook: { url: "http://127.0.0.1:1/" } };
      await expect(submit("x", elsewhere)).rejects.toThrow(/webhook\.url: "127\.0\.0\.1:1" is not one of/);
      await expect(client.batches.retrieve("..%2f..")).rejects.toThrow(OpenAI.NotFoundError);
      const batch = await end((await submit(`${jsonl([chatLine("a"), chatLine("a")])}{\n`)).id);
      expect(batch.status).toBe("failed");
      expect(batch.errors!.data!.map(({ code, line }) => [code, line])).toEqual([
        ["duplicate_custom_id", 2],
        ["invalid_json_line", 3],
      ]);
    },
    limitMs,
  );

  it(
    "tell their end to a webhook that the official client verifies",
    async () => {
      const url = `http://127.0.0.1:${hook.port}/hook`;
      const { id } = await submit(jsonl([chatLine("a", { max_tokens: 1 })]), { webhook: { url } });
      await end(id);
      const { headers, body } = await until("the webhook", () =>
        hook.seen.find((each) => each.body.includes(id)),
      );
      const secret = readFileSync(join(folder, "data/webhook-secret"), "utf8").trim();
      const event = await client.webhooks.unwrap(body, headers, secret);
      expect(event).toMatchObject({ type: "batch.completed", data: { id } });
      await until("it to be noted", async () => {
        const batch = (await client.batches.retrieve(id)) as unknown as { webhook: object };
        return JSON.stringify(batch.webhook) === JSON.stringify({ url, status: "delivered", attempts: 1 });
      });
    },
    limitMs,
  );

  it(
    "tell it once more after a coordinator that was killed in between",
    async () => {
      hook.refusals = 1;
      const url = `http://127.0.0.1:${hook.port}/again`;
      const { id } = await submit(jsonl([chatLine("a", { max_tokens: 1 })]), { webhook: { url } });
      const attempts = async () => {
        const batch = (await client.batches.retrieve(id)) as unknown as { webhook: { attempts: number } };
        return batch.webhook.attempts;
      };
      await until("the first attempt", async () => (await attempts()) === 1);
      cluster.coordinator.kill("SIGKILL");
      await cluster.coordinator.exited;
      cluster.startCoordinator(Number(new URL(cluster.url).port));
      const sent = () => hook.seen.filter(({ body }) => body.includes(id));
      await until("the second attempt", () => sent().length === 2);
      await until("it to be noted", async () => (await attempts().catch(() => 0)) === 2);
      expect(new Set(sent().map(({ headers }) => headers["webhook-id"])).size).toBe(1);
      expect(await client.batches.retrieve(id)).toMatchObject({
        webhook: { url, status: "delivered", attempts: 2 },
      });
    },
    limitMs,
  );

  it(
    "are watched from the command line while the coordinator is killed and started again",
    async () => {
      const lines = Array.from({ length: 80 }, (_, index) =>
        chatLine(`line ${index}`, {
          max_tokens: 10 + 4 * index,
          ignore_eos: true,
          temperature: 1,
          seed: index,
        }),
      );
      const input = write("watched.jsonl", jsonl(lines));
      const submitted = batchCommand("submit", input);
      expect((await submitted.exited).code).toBe(0);
      const id = /^batch_\w+$/m.exec(submitted.output)![0];
      const wait = batchCommand("wait", id);
      for (let kill = 0; kill < 2; kill++) {
        await cluster.until("the cluster to be ready", (view) => view.state === "ready");
        await until("some answers", async () => {
          const { completed } = (await client.batches.retrieve(id)).request_counts!;
          return completed >= 10 * (kill + 1);
        });
        cluster.coordinator.kill("SIGKILL");
        await cluster.coordinator.exited;
        cluster.startCoordinator(Number(new URL(cluster.url).port));
      }
      expect((await wait.exited).code).toBe(0);
      expect(wait.output).toMatch(/completed: done 80, failed 0 of 80/);
      const results = batchCommand("results", id, join(folder, "watched.out.jsonl"));
      expect((await results.exited).code).toBe(0);
      const ids = readFileSync(join(folder, "watched.out.jsonl"), "utf8").trimEnd().split("\n");
      expect(ids.map((line) => JSON.parse(line).custom_id)).toEqual(lines.map(({ custom_id }) => custom_id));
    },
    limitMs,
  );
});

/** A receiver of webhooks. */
async function startHook() {
  const hook = { seen: [] as { headers: Record<string, string>; body: string }[], refusals: 0 };
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    hook.seen.push({ headers: request.headers as Record<string, string>, body });
    response.writeHead(hook.refusals-- > 0 ? 500 : 204).end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return Object.assign(hook, { port, close });
}
