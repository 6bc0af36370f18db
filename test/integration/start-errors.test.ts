import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { failureIn } from "../../cli/errors.js";
import { packageRoot } from "../../common/package.js";
import { freePort, TestCluster, TestProcess, TestRedis, tinyModel } from "../support/cluster.js";
import { pickle, torchBytes } from "../unit/checkpoint/torch-fixture.js";

const main = join(packageRoot, "dist/cli/main.js");

describe("a start that cannot work ends with status 1 and says why", () => {
  let redis: TestRedis;
  let directory: string;
  beforeAll(async () => {
    redis = await TestRedis.start();
    directory = mkdtempSync(join(tmpdir(), "glm-relay-start-"));
  });
  afterAll(async () => {
    await redis?.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  async function start(args: string[]): Promise<{ code: number | null; output: string }> {
    const process = new TestProcess("coordinator", globalThis.process.execPath, [
      main,
      "coordinator",
      ...args,
    ]);
    const { code } = await process.exited;
    return { code, output: failureIn(process.output.trimEnd().split("\n").at(-1)!) ?? process.output };
  }

  const usual = (overrides: Record<string, string> = {}): string[] =>
    Object.entries({
      "--model": tinyModel,
      "--stages": "1",
      "--port": "0",
      "--redis": redis.url,
      ...overrides,
    }).flat();

  /** A copy of the tiny model, spoiled. */
  function spoiled(name: string, spoil: (copy: string) => void): string {
    const copy = join(directory, name);
    cpSync(tinyModel, copy, { recursive: true });
    spoil(copy);
    return copy;
  }

  it("a directory that is not there", async () => {
    const { code, output } = await start(usual({ "--model": join(directory, "none") }));
    expect(code).toBe(1);
    expect(output).toMatch(/none is not a directory/);
  });

  it("no config.json", async () => {
    const model = spoiled("no-config", (copy) => rmSync(join(copy, "config.json")));
    const { code, output } = await start(usual({ "--model": model }));
    expect([code, /config\.json/.test(output)]).toEqual([1, true]);
  });

  it("a truncated weights file", async () => {
    const model = spoiled("truncated", (copy) => truncateSync(join(copy, "model.safetensors"), 5_000));
    const { code, output } = await start(usual({ "--model": model }));
    expect([code, /model\.safetensors/.test(output)]).toEqual([1, true]);
  });

  it("a header that lies about a tensor's place", async () => {
    const model = spoiled("lying", (copy) =>
      rewriteHeader(copy, (header) => {
        const tensor = Object.values(header).find((value) => value.data_offsets !== undefined)!;
        tensor.data_offsets[1] += 1_000_000_000;
      }),
    );
    const { code, output } = await start(usual({ "--model": model }));
    expect([code, /model\.safetensors/.test(output)]).toEqual([1, true]);
  });

  it("a pickle that would run a command", async () => {
    const owned = join(directory, "owned");
    const model = spoiled("pickle", (copy) => {
      rmSync(join(copy, "model.safetensors"));
      const command = pickle.tuple(pickle.text(`touch ${owned}`));
      const call = [pickle.global("os", "system"), command, pickle.reduce];
      writeFileSync(join(copy, "pytorch_model.bin"), torchBytes(pickle.file(...call)));
    });
    const { code, output } = await start(usual({ "--model": model }));
    expect([code, /pytorch_model\.bin: data\.pkl names .*os\.system/.test(output)]).toEqual([1, true]);
    expect(existsSync(owned)).toBe(false);
  });

  it("a missing tensor and a tensor of another shape", async () => {
    const missing = spoiled("missing", (copy) =>
      rewriteHeader(copy, (header) => {
        header["transformer.gone"] = header["transformer.encoder.final_layernorm.weight"];
        delete header["transformer.encoder.final_layernorm.weight"];
      }),
    );
    const first = await start(usual({ "--model": missing }));
    expect(first.code).toBe(1);
    expect(first.output).toMatch(/missing tensor transformer\.encoder\.final_layernorm\.weight/);

    const shape = spoiled("shape", (copy) =>
      rewriteHeader(copy, (header) => {
        const tensor = header["transformer.output_layer.weight"];
        tensor.shape = [tensor.shape[1], tensor.shape[0]];
      }),
    );
    const second = await start(usual({ "--model": shape }));
    expect(second.code).toBe(1);
    expect(second.output).toMatch(
      /transformer\.output_layer\.weight has shape \[\d+, \d+\], expected \[\d+, \d+\]/,
    );
  });

  it("more stages than layers", async () => {
    const { code, output } = await start(usual({ "--stages": "64" }));
    expect([code, /64.*layers/.test(output)]).toEqual([1, true]);
  });

  it("a cut by hand that ends before or behind the last layer, or has a stage too few", async () => {
    const beyond = await start(usual({ "--layers": "0-99" }));
    expect(beyond.code).toBe(1);
    expect(beyond.output).toMatch(
      /--layers ends with layer 99: the model has \d+ layers, expected .* end with/,
    );
    const few = await start(usual({ "--layers": "0-0", "--stages": "2" }));
    expect(few.code).toBe(2);
    expect(few.output).toMatch(/'0-0' has 1 range: expected 2/);
  });

  it("a busy port", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const { port } = server.address() as { port: number };
    const { code, output } = await start(usual({ "--port": String(port) }));
    server.close();
    expect([code, output.includes(String(port))]).toEqual([1, true]);
  });

  it("Redis unreachable", async () => {
    const port = await freePort();
    const { code, output } = await start(usual({ "--redis": `redis://127.0.0.1:${port}` }));
    expect(code).toBe(1);
    expect(output).toMatch(new RegExp(`Redis at 127\\.0\\.0\\.1:${port} does not answer`));
  });

  it("a Redis that may evict what was accepted", async () => {
    const evicting = new TestProcess("redis-server", "redis-server", [
      ...["--port", String(await freePort()), "--save", "", "--dir", directory],
      ...["--maxmemory-policy", "allkeys-lru"],
    ]);
    const [, port] = await evicting.line(/port[=: ]+(\d+)/i);
    await evicting.line(/Ready to accept connections/);
    const { code, output } = await start(usual({ "--redis": `redis://127.0.0.1:${port}` }));
    evicting.kill("SIGKILL");
    await evicting.exited;
    expect(code).toBe(1);
    expect(output).toMatch(/maxmemory-policy "allkeys-lru", expected "noeviction"/);
  });

  it("a worker port beyond loopback", async () => {
    const { code, output } = await start(usual({ "--cluster-listen": "0.0.0.0:0" }));
    expect([code, /beyond loopback/.test(output)]).toEqual([1, true]);
  });

  it("an unknown kernel variant", async () => {
    const args = [main, "worker", "--coordinator", `127.0.0.1:${await freePort()}`];
    const worker = new TestProcess("worker", process.execPath, args, { GLM_RELAY_KERNELS: "quantum" });
    expect((await worker.exited).code).toBe(1);
    expect(worker.output).toMatch(/quantum.*scalar/s);
  });
});

describe("a model without a tokenizer", () => {
  it("serves token ids, and says that chat needs a tokenizer", async () => {
    const cluster = await TestCluster.start({ model: tinyModel, stages: 3 });
    try {
      const ids = await cluster.post("/v1/completions", {
        prompt: [1, 2],
        max_tokens: 4,
        logprobs: 1,
        temperature: 0,
      });
      expect(ids.status).toBe(200);
      expect(ids.body.choices[0].logprobs.tokens[0]).toMatch(/^token_id:\d+$/);
      const chat = await cluster.post("/v1/chat/completions", {
        messages: [{ role: "user", content: "hi" }],
      });
      expect([chat.status, chat.body.error.code]).toEqual([501, "not_supported"]);
    } finally {
      await cluster.stop();
    }
  });
});

function rewriteHeader(directory: string, edit: (header: Record<string, any>) => void): void {
  const file = join(directory, "model.safetensors");
  const bytes = readFileSync(file);
  const length = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.subarray(8, 8 + length).toString());
  edit(header);
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(text.length));
  writeFileSync(file, Buffer.concat([size, text, bytes.subarray(8 + length)]));
}
