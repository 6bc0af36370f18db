import { connect } from "node:net";
import { join } from "node:path";
import { Redis } from "ioredis";
import { describe, expect, it, onTestFinished } from "vitest";
import {
  findRedisServer,
  freePort,
  probeRedis,
  redisArguments,
  requireFreePort,
} from "../../../cli/redis.js";
import { Supervisor } from "../../../cli/supervisor.js";
import { eventually, scratch } from "./support.js";

let server: string | null = null;
try {
  server = findRedisServer();
} catch (error) {
  console.warn(`skipping the tests with a real Redis: ${(error as Error).message}`);
}

async function startRedis(): Promise<{ redis: Supervisor; port: number }> {
  const directory = scratch();
  const port = await freePort();
  const redis = new Supervisor(
    {
      name: "redis",
      command: server!,
      args: () => redisArguments(port, directory),
      logFile: join(directory, "redis.log"),
      ready: { by: "probe", limitMs: 10_000, probe: (pid) => probeRedis(port, pid) },
    },
    { started: () => undefined, ended: () => undefined, lost: () => undefined },
  );
  onTestFinished(() => redis.stop(2_000));
  redis.start();
  await redis.firstReady;
  return { redis, port };
}

function client(port: number): Redis {
  const redis = new Redis(port, "127.0.0.1");
  redis.on("error", () => undefined);
  onTestFinished(() => redis.disconnect());
  return redis;
}

describe.skipIf(server === null)("a Redis of our own", () => {
  it("keeps its data and its port when it is killed and restarted", async () => {
    const { redis, port } = await startRedis();
    const first = redis.pid!;
    const store = client(port);
    // With everysec Redis may answer a write up to two seconds before the kernel has it.
    await store.config("SET", "appendfsync", "always");
    await store.set("answer", "42");
    process.kill(first, "SIGKILL");
    await eventually(async () => redis.pid !== null && redis.pid !== first && probeRedis(port, redis.pid));
    expect(await client(port).get("answer")).toBe("42");
  });

  it("never evicts, appends every write to a file, makes no snapshots and listens on loopback only", async () => {
    const { port } = await startRedis();
    const store = client(port);
    const settings = ["maxmemory-policy", "appendonly", "appendfsync", "save", "bind", "protected-mode"];
    const values = await Promise.all(
      settings.map(async (name) => settingValue(await store.config("GET", name))),
    );
    expect(values).toEqual(["noeviction", "yes", "everysec", "", "127.0.0.1", "yes"]);
  });

  it("is not taken for ready when another process answers on its port", async () => {
    const { redis, port } = await startRedis();
    expect(await probeRedis(port, redis.pid!)).toBe(true);
    expect(await probeRedis(port, redis.pid! + 1)).toBe(false);
  });

  it("ends when it is stopped", async () => {
    const { redis, port } = await startRedis();
    await redis.stop(2_000);
    await expect(requireFreePort(port)).resolves.toBeUndefined();
    await new Promise((resolve) => connect(port, "127.0.0.1").once("error", resolve));
  });
});

describe("finding a Redis", () => {
  it("names the line that installs one when there is none", () => {
    expect(() => findRedisServer("/nonexistent")).toThrow(
      /apt-get update && .*apt-get install -y redis-server/,
    );
  });
});

/** CONFIG GET answers a list or, in RESP3, a map. */
function settingValue(answer: unknown): unknown {
  return Array.isArray(answer) ? answer[1] : Object.values(answer as object)[0];
}
