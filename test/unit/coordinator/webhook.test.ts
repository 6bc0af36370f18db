import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { pino } from "pino";
import { describe, expect, it, onTestFinished } from "vitest";
import { attemptsMax, type Delivery, pausesMs, Webhooks } from "../../../coordinator/batches/webhook.js";
import { isWebhookHost, WebhookHosts } from "../../../coordinator/batches/webhook-hosts.js";
import { webhookKey } from "../../../coordinator/batches/webhook-secret.js";
import { eventually } from "../cli/support.js";

const secret = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;
const key = Buffer.alloc(32, 7);

interface Seen {
  method: string;
  path: string;
  headers: Record<string, string>;
  body: string;
}

/** A receiver that answers as the test says; by itself with 204. */
async function receiver(
  answer: (response: ServerResponse, count: number) => void = (r) => r.writeHead(204).end(),
) {
  const seen: Seen[] = [];
  const server = createServer(async (request: IncomingMessage, response) => {
    let body = "";
    for await (const chunk of request) body += chunk;
    const headers = request.headers as Record<string, string>;
    seen.push({ method: request.method!, path: request.url!, headers, body });
    answer(response, seen.length);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.close();
    server.closeAllConnections();
  });
  const { port } = server.address() as { port: number };
  return { seen, url: `http://127.0.0.1:${port}/hook?a=b`, host: `127.0.0.1:${port}` };
}

function delivery(url: string, rest: Partial<Delivery> = {}): Delivery {
  return {
    batchId: "batch_1",
    url,
    end: "completed",
    endedAt: 1_700_000_000,
    status: "pending",
    attempts: 0,
    ...rest,
  };
}

/** What the process writes down, and what the next one finds. */
class Store {
  readonly saved: Delivery[] = [];
  failing = false;

  constructor(private readonly left: Delivery[] = []) {}

  load(): Delivery[] {
    return this.left;
  }

  async save(state: Delivery): Promise<void> {
    this.saved.push(state);
    if (this.failing) throw new Error("the disk is full");
  }
}

function webhooks(
  store: Store,
  hosts: string[],
  rest: { key?: null; pausesMs?: number[]; attemptLimitMs?: number } = {},
) {
  const log = pino({ level: "silent" });
  const made = new Webhooks({ hosts: new WebhookHosts(hosts), key, store, log, ...rest });
  onTestFinished(() => made.close());
  return made;
}

const quick = { pausesMs: Array.from({ length: pausesMs.length }, () => 2) };

describe("a webhook", () => {
  it("is verified by the official client", async () => {
    const { seen, url, host } = await receiver();
    const store = new Store();
    webhooks(store, [host]).deliver(delivery(url));
    await eventually(() => store.saved.length === 1);
    expect(seen).toMatchObject([{ method: "POST", path: "/hook?a=b" }]);
    const { body, headers } = seen[0]!;
    const client = new OpenAI({ apiKey: "none" });
    const event = await client.webhooks.unwrap(body, headers, secret);
    expect(event).toEqual({
      id: headers["webhook-id"],
      object: "event",
      type: "batch.completed",
      created_at: 1_700_000_000,
      data: { id: "batch_1" },
    });
    expect(store.saved).toEqual([delivery(url, { status: "delivered", attempts: 1 })]);
    const other = `whsec_${Buffer.alloc(32, 8).toString("base64")}`;
    await expect(client.webhooks.unwrap(body, headers, other)).rejects.toThrow(/does not match/);
    await expect(
      client.webhooks.unwrap(body.replace("batch_1", "batch_2"), headers, secret),
    ).rejects.toThrow();
  });

  it("is tried again under the same id until it is taken", async () => {
    const { seen, url, host } = await receiver((response, count) => {
      if (count === 1) response.writeHead(500).end();
      else if (count === 2) response.destroy();
      else response.writeHead(200).end("thanks");
    });
    const store = new Store();
    webhooks(store, [host], quick).deliver(delivery(url, { end: "expired" }));
    await eventually(() => store.saved.at(-1)?.status === "delivered");
    expect(store.saved.map(({ status, attempts }) => [status, attempts])).toEqual([
      ["pending", 1],
      ["pending", 2],
      ["delivered", 3],
    ]);
    expect(new Set(seen.map(({ headers }) => headers["webhook-id"])).size).toBe(1);
    expect(JSON.parse(seen[0]!.body).type).toBe("batch.expired");
  });

  it("is given up after eight attempts, within minutes", async () => {
    const { seen, url, host } = await receiver((response) => response.writeHead(503).end());
    const store = new Store();
    webhooks(store, [host], quick).deliver(delivery(url));
    await eventually(() => store.saved.at(-1)?.status === "failed");
    expect(attemptsMax).toBe(8);
    expect(seen).toHaveLength(8);
    expect(store.saved.at(-1)).toEqual(delivery(url, { status: "failed", attempts: 8 }));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(seen).toHaveLength(8);
    expect([pausesMs[0], pausesMs.at(-1)]).toEqual([1_000, 300_000]);
  });

  it("is not tried again when it is not wanted any more", async () => {
    const { seen, url, host } = await receiver((response) => response.writeHead(410).end());
    const store = new Store();
    webhooks(store, [host], quick).deliver(delivery(url));
    await eventually(() => store.saved.length === 1);
    expect(store.saved[0]).toMatchObject({ status: "failed", attempts: 1 });
    expect(seen).toHaveLength(1);
  });

  it("does not follow a redirect", async () => {
    const elsewhere = await receiver();
    const { url, host } = await receiver((response) =>
      response.writeHead(307, { location: elsewhere.url }).end(),
    );
    const store = new Store();
    webhooks(store, ["*", host], { pausesMs: [1] }).deliver(delivery(url));
    await eventually(() => store.saved.at(-1)?.status === "failed");
    expect(store.saved).toHaveLength(2);
    expect(elsewhere.seen).toEqual([]);
  });

  it("does not wait for a receiver that says nothing", async () => {
    const { seen, url, host } = await receiver(() => {});
    const store = new Store();
    webhooks(store, [host], { pausesMs: [1], attemptLimitMs: 50 }).deliver(delivery(url));
    await eventually(() => store.saved.at(-1)?.status === "failed");
    expect(seen).toHaveLength(2);
  });

  it("goes on where an earlier process was, and no further", async () => {
    const { seen, url, host } = await receiver((response) => response.writeHead(500).end());
    const store = new Store([
      delivery(url, { attempts: 6 }),
      delivery(url, { batchId: "batch_2", attempts: 7 }),
    ]);
    webhooks(store, [host], quick).start();
    await eventually(() => store.saved.filter(({ status }) => status === "failed").length === 2);
    expect(seen).toHaveLength(3);
    expect(store.saved.every(({ attempts }) => attempts <= 8)).toBe(true);
  });

  it("stays pending when the process ends in the middle", async () => {
    const { seen, url, host } = await receiver(() => {});
    const store = new Store();
    const first = webhooks(store, [host], quick);
    first.deliver(delivery(url));
    await eventually(() => seen.length === 1);
    first.close();
    first.deliver(delivery(url, { batchId: "batch_2" }));
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(store.saved).toEqual([]);
    expect(seen).toHaveLength(1);
  });

  it("is not sent to a host that is not allowed any more", async () => {
    const { seen, url } = await receiver();
    const store = new Store([delivery(url)]);
    webhooks(store, ["elsewhere"], quick).start();
    await eventually(() => store.saved.length === 1);
    expect(store.saved[0]).toMatchObject({ status: "failed", attempts: 1 });
    const off = new Store([delivery(url)]);
    webhooks(off, [], { ...quick, key: null }).start();
    await eventually(() => off.saved.length === 1);
    expect(off.saved[0]).toMatchObject({ status: "failed", attempts: 1 });
    expect(seen).toEqual([]);
  });

  it("goes on although nothing can be written down", async () => {
    const { seen, url, host } = await receiver((response, count) =>
      response.writeHead(count < 3 ? 500 : 200).end(),
    );
    const store = new Store();
    store.failing = true;
    webhooks(store, [host], quick).deliver(delivery(url));
    await eventually(() => store.saved.at(-1)?.status === "delivered");
    expect(seen).toHaveLength(3);
  });

  it("is one of sixteen at a time", async () => {
    const open: ServerResponse[] = [];
    const { seen, url, host } = await receiver((response) => void open.push(response));
    const store = new Store();
    const sender = webhooks(store, [host], quick);
    for (let i = 0; i < 40; i++) sender.deliver(delivery(url, { batchId: `batch_${i}` }));
    await eventually(() => seen.length === 16);
    await new Promise((resolve) => setTimeout(resolve, 30));
    expect(seen).toHaveLength(16);
    while (store.saved.length < 40) {
      for (const response of open.splice(0)) response.writeHead(200).end();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    expect(new Set(seen.map(({ headers }) => headers["webhook-id"])).size).toBe(40);
  });
});

describe("the secret of webhooks", () => {
  function folder(): string {
    const made = mkdtempSync(join(tmpdir(), "glm-relay-secret-"));
    onTestFinished(() => rmSync(made, { recursive: true, force: true }));
    return made;
  }

  it("is made once, for its owner alone, and is the same after a restart", async () => {
    const data = folder();
    const made = await webhookKey(null, data);
    expect(made).toHaveLength(32);
    expect(await webhookKey(null, data)).toEqual(made);
    const file = join(data, "webhook-secret");
    expect(statSync(file).mode & 0o777).toBe(0o600);
    expect(readFileSync(file, "utf8")).toBe(`whsec_${made.toString("base64")}\n`);
  });

  it("is read from a file, which must hold one", async () => {
    const data = folder();
    const file = join(data, "secret");
    writeFileSync(file, `${secret}\n`);
    expect(await webhookKey(file, data)).toEqual(key);
    const long = `whsec_${Buffer.alloc(65).toString("base64")}`;
    for (const text of ["", "whsec_", "AAAA", "whsec_AAAA", "whsec_#".padEnd(60, "A"), long]) {
      writeFileSync(file, text);
      const refused = webhookKey(file, data);
      await expect(refused).rejects.toThrow(/secret does not hold whsec_ and 24 to 64 bytes in base64/);
      if (text.length > 10) await expect(refused).rejects.not.toThrow(text.slice(8));
    }
    await expect(webhookKey(join(data, "none"), data)).rejects.toThrow(/none cannot be read: ENOENT/);
  });
});

describe("the hosts of webhooks", () => {
  it.each(["*", "example.org", "Example.org:8443", "10.0.0.1", "[::1]:9000", "localhost:80"])(
    "may be %s",
    (word) => {
      expect(isWebhookHost(word)).toBe(true);
    },
  );

  it.each(["", "a b", "http://a", "a/b", "a:99999", "user@a", "a?b", "a#b", "*.a", "::1"])(
    "cannot be %j",
    (word) => {
      expect(isWebhookHost(word)).toBe(false);
    },
  );
});
