/** All processes of a simulated cluster, and whoever starts them again. */
import type { Random } from "../random.js";
import type { Answers } from "./answers.js";
import { SimCoordinator } from "./coordinator.js";
import type { CoordinatorContext } from "./core-watch.js";
import type { Network } from "./network.js";
import type { SimRedis } from "./redis.js";
import type { Scenario } from "./scenario.js";
import { SimWorker } from "./worker.js";
import type { World } from "./world.js";

const MB = 1_000_000;
const restartMs = { least: 100, most: 1_500 };

export interface ClusterContext {
  world: World;
  network: Network;
  redis: SimRedis;
  random: Random;
  scenario: Scenario;
  answers: Answers;
}

export class Cluster {
  readonly workers: readonly SimWorker[];
  readonly #context: ClusterContext;
  readonly #coordinatorContext: CoordinatorContext;
  readonly #restarts: Random;
  #coordinators: SimCoordinator[] = [];
  #begun = 0;
  /** At times there were two coordinators. */
  #overlapped = false;

  constructor(context: ClusterContext) {
    this.#context = context;
    const { world, network, random, scenario } = context;
    this.#coordinatorContext = { ...context, random: random.fork("coordinator"), owners: new Map() };
    this.#restarts = random.fork("restarts");
    this.beginCoordinator();
    this.workers = Array.from({ length: scenario.workerCount }, (_, index) => {
      const name = `worker-${index}`;
      const { prefixLength, baseMs, rowMs } = scenario;
      const options = { name, memoryBytes: 100 * MB, prefixLength, baseMs, rowMs };
      return new SimWorker(world, network, random.fork(name), options);
    });
  }

  /** The newest one leads. */
  get coordinator(): SimCoordinator {
    return this.#coordinators.at(-1)!;
  }

  /** Beside one that lives, if any: that one goes on with an older term, and is dialled by nobody new. */
  beginCoordinator(): void {
    const made = new SimCoordinator(this.#coordinatorContext, `coordinator-${++this.#begun}`);
    if (this.#coordinators.some(({ process }) => process.alive)) this.#overlapped = true;
    this.#coordinators = [...this.#coordinators.filter(({ process }) => process.alive), made];
    made.process.onDeath(() => {
      if (this.coordinator !== made) return;
      const ms = this.#restarts.between(restartMs.least, restartMs.most);
      this.#context.world.loop.after(ms, () => {
        if (!this.coordinator.process.alive) this.beginCoordinator();
      });
    });
  }

  /** All but the newest one. */
  staleCoordinators(): SimCoordinator[] {
    return this.#coordinators.slice(0, -1).filter(({ process }) => process.alive);
  }

  /** Why the cluster is not at rest; null when it is. */
  unrest(): string | null {
    const jobs = this.#context.redis.keys("sim:job:").length;
    if (jobs > 0) return `${jobs} jobs are in the queue`;
    return this.coordinator.leftOver();
  }

  /** Blocks that sequences hold; null when none does. */
  blocksInUse(): string | null {
    for (const { pipeline, blocks } of this.coordinator.core?.view().pipelines ?? []) {
      if (blocks.used > 0) return `pipeline ${pipeline}: ${blocks.used} blocks are used by nobody`;
    }
    return null;
  }

  /** Records of requests that have ended; null when there are none. */
  recordsLeft(): string | null {
    const { redis } = this.#context;
    // Two coordinators at a time write what the other one has deleted, which Redis forgets after a day.
    if (redis.tailLostAtMs > Number.NEGATIVE_INFINITY || this.#overlapped) return null;
    const [first] = [...redis.keys("sim:ledger:"), ...redis.keys("sim:tokens:")];
    return first === undefined ? null : `${first} is left of a request that ended`;
  }
}
