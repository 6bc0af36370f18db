/** The faults of a seed: what happens, when, and what clients may hear of it. */
import type { Random } from "../random.js";
import type { ErrorRules } from "./client.js";
import type { Cluster } from "./cluster.js";
import type { Network } from "./network.js";
import type { SimRedis } from "./redis.js";
import { type ClientPlan, type FaultKind, maxStandstillMs, type Scenario } from "./scenario.js";
import type { World } from "./world.js";

/** Nothing fails before the first plan can have been made. */
const firstFaultMs = 400;

interface FaultsContext {
  world: World;
  network: Network;
  redis: SimRedis;
  random: Random;
  scenario: Scenario;
  cluster: Cluster;
}

export class Faults implements ErrorRules {
  readonly #context: FaultsContext;

  constructor(context: FaultsContext) {
    this.#context = context;
  }

  begin(): void {
    const { world, random, scenario, network } = this.#context;
    const { faults, faultsUntilMs, faultEveryMs } = scenario;
    world.loop.at(faultsUntilMs, () => this.#end());
    if (faults.includes("jitter")) network.conditions.jitterMs = random.between(0.5, 40);
    if (faults.includes("loss")) network.conditions.lossRate = random.between(0.002, 0.05);
    const happening = faults.filter((kind) => kind !== "jitter" && kind !== "loss");
    if (happening.length === 0) return;
    const next = () => {
      world.loop.after(random.exponential(faultEveryMs), () => {
        if (world.loop.nowMs() >= faultsUntilMs) return;
        this.#happen(random.pick(happening));
        next();
      });
    };
    world.loop.after(firstFaultMs, next);
  }

  complaint(code: string, { deadlineMs }: ClientPlan, sinceMs: number): string | null {
    const { world, scenario } = this.#context;
    const { faults, queueLimit } = scenario;
    const has = (...kinds: FaultKind[]) => kinds.some((kind) => faults.includes(kind));
    switch (code) {
      case "deadline_exceeded":
        if (deadlineMs === null) return "it has no deadline";
        return world.loop.nowMs() - sinceMs >= deadlineMs ? null : "its deadline has not passed";
      case "queue_full":
        return queueLimit < 200 ? null : "the limit is far away";
      case "queue_unavailable":
        return has("redis away", "redis loses its tail", "stale coordinator", "standstill")
          ? null
          : "Redis was there";
      case "request_poisoned":
        return (world.counts.get("plans over") ?? 0) >= 3 ? null : "fewer than three pipelines were lost";
      case "worker_lost":
        return faults.length > 0 ? null : "none was lost";
      case "model_loading":
        return faults.length > 0 || sinceMs < 5_000 ? null : "it was loaded";
      case "draining":
        return has("coordinator shutdown") ? null : "no coordinator shut down";
      case "cancelled":
        return null;
      default:
        return "that may never be";
    }
  }

  #happen(kind: FaultKind): void {
    const { world, network, redis, random, cluster } = this.#context;
    const worker = random.pick(cluster.workers);
    const { coordinator } = cluster;
    world.trace.note("FAULT", kind);
    world.count(`fault ${kind}`);
    switch (kind) {
      case "broken connection":
      case "half-open connection": {
        const process = random.chance(0.7) ? worker.process : coordinator.process;
        network.breakOne(process, kind === "half-open connection");
        return;
      }
      case "partition": {
        const names = cluster.workers.filter(() => random.chance(0.4)).map(({ name }) => name);
        network.part(names.length === 0 ? [worker.name] : names, random.between(100, 6_000));
        return;
      }
      case "slow worker":
        worker.slowness = random.pick([3, 20, 200]);
        world.loop.after(random.between(500, 5_000), () => {
          worker.slowness = 1;
        });
        return;
      case "worker death":
      case "machine death":
        worker.kill(kind === "machine death");
        world.loop.after(random.between(50, 14_000), () => worker.restart());
        return;
      case "coordinator death":
        coordinator.kill(random.chance(0.2));
        return;
      case "coordinator shutdown":
        coordinator.shutDown();
        return;
      case "stale coordinator":
        if (cluster.staleCoordinators().length > 0) return;
        cluster.beginCoordinator();
        world.loop.after(random.between(500, 8_000), () => {
          for (const stale of cluster.staleCoordinators()) stale.kill(false);
        });
        return;
      case "standstill":
        (random.chance(0.6) ? coordinator.process : worker.process).stall(
          random.between(100, maxStandstillMs),
        );
        return;
      case "redis away":
      case "redis loses its tail":
        redis.goDown(kind === "redis away" ? 0 : random.between(10, 1_000));
        world.loop.after(random.between(50, 4_000), () => redis.comeUp());
        return;
      case "job comes again":
        if (redis.up) cluster.coordinator.repeatJob();
        return;
      case "old result":
        coordinator.deliverOldResult();
    }
  }

  /** From now on everything works. */
  #end(): void {
    const { world, network, redis, cluster, scenario } = this.#context;
    world.trace.note("FAULT", "none any more");
    network.conditions = { ...scenario.network };
    network.heal();
    redis.comeUp();
    for (const worker of cluster.workers) {
      worker.slowness = 1;
      worker.restart();
    }
    for (const stale of cluster.staleCoordinators()) stale.kill(false);
    if (!cluster.coordinator.process.alive) cluster.beginCoordinator();
  }
}
