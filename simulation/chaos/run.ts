/** One seed from its beginning to its end: faults for a while, then none, and everything must come to rest. */
import { Random } from "../random.js";
import { Answers } from "./answers.js";
import { BatchClient, type ClientContext, SimClient } from "./client.js";
import { Cluster } from "./cluster.js";
import { Faults } from "./faults.js";
import { Network } from "./network.js";
import { SimRedis } from "./redis.js";
import { type ClientPlan, type Scenario, scenarioOf } from "./scenario.js";
import { type Violation, World } from "./world.js";

/** Once nothing fails any more: half-open connections are found, leases end, the youngest backoff is over. */
const drainLimitMs = 150_000;
const restPollMs = 250;
/** A run that makes more events than this goes round in a circle. */
const maxEvents = 2_000_000;

export interface Outcome {
  seed: number;
  scenario: Scenario;
  violation: Violation | null;
  /** The last lines of the trace. */
  trace: string[];
  events: number;
  /** Virtual. */
  tookMs: number;
  counts: ReadonlyMap<string, number>;
}

export async function runSeed(seed: number, traceLines = 60): Promise<Outcome> {
  const random = new Random(seed);
  const scenario = scenarioOf(random.fork("scenario"));
  const world = new World();
  const network = new Network(world, random.fork("network"), { ...scenario.network });
  const redis = new SimRedis(world);
  const answers = new Answers();
  const cluster = new Cluster({ world, network, redis, random: random.fork("cluster"), scenario, answers });
  const faults = new Faults({ world, network, redis, random: random.fork("faults"), scenario, cluster });
  const context: ClientContext = { world, network, answers, rules: faults };
  const clients = scenario.clients.map((plan, index) => new SimClient(context, `client-${index}`, plan));
  const batch = new BatchClient(context, scenario.batch.lines.map(linePlan), scenario.batch.atOnce);
  faults.begin();

  const endMs = scenario.faultsUntilMs + drainLimitMs;
  let atRest = false;
  const unrest = (): string | null => {
    const waiting = clients.filter(({ done }) => done === null).map(({ name }) => name);
    if (waiting.length > 0) return `${waiting.slice(0, 3).join(", ")} and ${waiting.length} in all wait`;
    if (batch.missing > 0) return `${batch.missing} lines of the batch have no answer`;
    return cluster.unrest();
  };
  world.loop.every(restPollMs, () => {
    cluster.coordinator.checkReasons();
    if (world.loop.nowMs() <= scenario.faultsUntilMs || unrest() !== null) return;
    atRest = cluster.blocksInUse() === null && cluster.recordsLeft() === null;
  });
  let events = 0;
  while (!atRest && world.violation === null && world.loop.nowMs() < endMs && events < maxEvents) {
    world.loop.step();
    events++;
    if (!world.unsettled) continue;
    world.unsettled = false;
    await new Promise<void>((resolve) => process.nextTick(resolve));
  }
  if (world.violation === null && !atRest) {
    const after = `after ${Math.round(world.loop.nowMs())} ms`;
    const [busy, blocks] = [unrest(), cluster.blocksInUse()];
    if (busy !== null) world.violate("everything drains", `${after}: ${busy}`);
    else if (blocks !== null) world.violate("all blocks come back", `${after}: ${blocks}`);
    else world.violate("books are kept", `${after}: ${cluster.recordsLeft()}`);
  }
  const { preemptions = 0, prefixCacheHits = 0 } = cluster.coordinator.core?.view().counters ?? {};
  world.count("preemptions", preemptions);
  world.count("prompt tokens found in the cache", prefixCacheHits);
  return {
    seed,
    scenario,
    violation: world.violation,
    trace: world.trace.last(traceLines),
    events,
    tookMs: world.loop.nowMs(),
    counts: world.counts,
  };
}

const linePlan = (request: Scenario["batch"]["lines"][number]): ClientPlan => ({
  request,
  beginsAtMs: 0,
  deadlineMs: null,
  leavesAfterMs: null,
  paceMs: 0,
  looksUp: false,
});

/** What a failing seed prints: how to run it again, what did not hold, and what happened before. */
export function report({ seed, violation, trace, scenario }: Outcome): string {
  if (violation === null) return `seed ${seed}: all invariants held`;
  const { pipelineCount, stageCount, maxBlocks, speculation, prefixModel, faults } = scenario;
  return [
    `seed ${seed}: ${violation.invariant}: ${violation.message}`,
    `  again: SEED=${seed} npx vitest run test/simulation/chaos.test.ts, or node dist/simulation/chaos/main.js --seed ${seed}`,
    `  ${pipelineCount} x ${stageCount} stages, ${maxBlocks} blocks, speculation ${speculation}, prefix-LM ${prefixModel}`,
    `  faults: ${faults.join(", ") || "none"}`,
    ...trace.map((line) => `  ${line}`),
  ].join("\n");
}
