import { describe, expect, it } from "vitest";
import { keepaliveMs, Network } from "../../simulation/chaos/network.js";
import { Process } from "../../simulation/chaos/process.js";
import { RedisClient, SimRedis } from "../../simulation/chaos/redis.js";
import { World } from "../../simulation/chaos/world.js";
import { Random } from "../../simulation/random.js";

function pair(conditions = { latencyMs: 1, jitterMs: 20, lossRate: 0.2 }) {
  const world = new World();
  const network = new Network(world, new Random(1), conditions);
  const [a, b] = [new Process(world, "a"), new Process(world, "b")];
  const got: unknown[] = [];
  const ends: [string, number][] = [];
  network.listen(b, "b", (endpoint) => {
    endpoint.onMessage = (message) => got.push(message);
    endpoint.onClose = () => ends.push(["b", world.loop.nowMs()]);
  });
  const endpoint = network.dial(a, "b");
  endpoint.onClose = () => ends.push(["a", world.loop.nowMs()]);
  return { world, network, a, b, endpoint, got, ends };
}

describe("a simulated connection", () => {
  it("delivers in order, however late single messages are", () => {
    const { world, endpoint, got } = pair();
    const sent = Array.from({ length: 200 }, (_, index) => index);
    for (const message of sent) endpoint.send(message);
    world.loop.runUntil(60_000);
    expect(got).toEqual(sent);
  });

  it("is half open for a while when one end does not hear that it broke", () => {
    const { world, network, a, endpoint, got, ends } = pair();
    world.loop.runUntil(100);
    network.breakOne(a, true);
    endpoint.send("lost");
    world.loop.runUntil(keepaliveMs + 1_000);
    expect(got).toEqual([]);
    expect(ends).toHaveLength(2);
    expect(ends[1]![1] - ends[0]![1]).toBeGreaterThan(keepaliveMs / 2);
  });

  it("outlives a short partition and not a long one", () => {
    for (const ms of [500, 5_000]) {
      const { world, network, endpoint, got, ends } = pair();
      world.loop.runUntil(100);
      network.part(["a"], ms);
      endpoint.send("over");
      world.loop.runUntil(60_000);
      expect(got).toEqual(ms === 500 ? ["over"] : []);
      expect(ends).toHaveLength(ms === 500 ? 0 : 2);
    }
  });
});

describe("a simulated process", () => {
  it("does what came while it stood still afterwards, and an interval's ticks once", () => {
    const world = new World();
    const process = new Process(world, "p");
    const done: string[] = [];
    process.timers.every(100, () => done.push("tick"));
    process.stall(1_000);
    process.run(() => done.push("one"));
    process.run(() => done.push("two"));
    world.loop.runUntil(1_050);
    expect(done).toEqual(["one", "two", "tick"]);
    process.kill();
    world.loop.runUntil(5_000);
    expect(done).toHaveLength(3);
  });
});

describe("simulated Redis", () => {
  it("forgets its last second, and only that", async () => {
    const world = new World();
    const redis = new SimRedis(world);
    const client = new RedisClient(redis, new Process(world, "p"));
    for (const [key, atMs] of [
      ["old", 0],
      ["young", 1_000],
    ] as const) {
      world.loop.runUntil(atMs);
      void client.set(key, key);
    }
    world.loop.runUntil(1_500);
    redis.goDown(900);
    expect([redis.get("old"), redis.get("young")]).toEqual(["old", undefined]);
    const asked = client.get("old").catch((error: Error) => error.message);
    world.loop.runUntil(1_600);
    expect(await asked).toBe("Redis is away");
  });
});
