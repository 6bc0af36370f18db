/** Whatever happens to the workers of several pipelines, each request ends once, with the tokens it would have had. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import { expectedTokens, FakeCluster, generation } from "../../support/fake-cluster.js";

const action = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant("answer" as const), pipeline: fc.nat(1) }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("admit" as const),
      prompt: fc.integer({ min: 1, max: 60 }),
      begin: fc.integer({ min: 1, max: 2 }),
      tokens: fc.integer({ min: 1, max: 12 }),
      choices: fc.integer({ min: 1, max: 3 }),
      isRead: fc.constantFrom("causally", "causally", "whole"),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("cancel" as const), which: fc.nat(20) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant("kill" as const), worker: fc.nat(4) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant("lose step" as const), pipeline: fc.nat(1) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("revive" as const), worker: fc.nat(4) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant("link" as const) }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("pass" as const), ms: fc.constantFrom(100, 500, 4_000) }),
  },
);
type Action = typeof action extends fc.Arbitrary<infer T> ? T : never;

const contextOf = (length: number) => ({ length, mask: -1, constantPosition: false, remainingMasks: [] });

/** Two pipelines of two workers, and a fifth worker that begins as a spare. */
class Scenario {
  readonly cluster: FakeCluster;
  readonly admitted = new Map<string, { prompt: number[]; tokens: number; choices: number }>();
  readonly cancelled = new Set<string>();
  /** Connections of the workers that live, by the workers' numbers. */
  readonly alive = new Map<number, number>();
  #nextConnection = 1;
  losses = 0;

  constructor(speculation: boolean) {
    this.cluster = new FakeCluster({ pipelineCount: 2, maxBlocks: 24, prefillChunk: 16, speculation });
    for (let worker = 0; worker < 5; worker++) this.revive(worker);
    this.cluster.link();
  }

  revive(worker: number): void {
    if (this.alive.has(worker)) return;
    const connection = this.#nextConnection++;
    this.alive.set(worker, connection);
    this.cluster.join(connection, { worker: `worker-${worker}` });
  }

  pass(ms: number): void {
    this.cluster.pass(ms, [...this.alive.values()]);
  }

  run(step: Action): void {
    const { cluster } = this;
    const { core } = cluster;
    switch (step.do) {
      case "answer":
        if (cluster.steps.some(({ pipeline }) => pipeline === step.pipeline)) cluster.answer(step.pipeline);
        return;
      case "admit": {
        // Before the first loss of all a request would be refused with 503.
        const id = `r${this.admitted.size}`;
        const prompt = Array.from({ length: step.prompt }, (_, index) => step.begin + index);
        this.admitted.set(id, { prompt, tokens: step.tokens, choices: step.choices });
        const choices = Array.from({ length: step.choices }, (_, seed) => ({
          promptTokens: prompt,
          ...(step.isRead === "whole" && step.prompt > 1 ? { context: contextOf(step.prompt - 1) } : {}),
          seed: `${seed}`,
        }));
        core.admit({ ...generation(id, [], { maxTokens: step.tokens }), choices });
        return;
      }
      case "cancel": {
        const id = `r${step.which}`;
        if (!this.admitted.has(id) || cluster.ended.has(requestId(id))) return;
        this.cancelled.add(id);
        core.cancel(requestId(id));
        return;
      }
      case "kill": {
        const connection = this.alive.get(step.worker);
        if (connection === undefined) return;
        this.alive.delete(step.worker);
        this.losses++;
        // What was on its way in its pipeline never comes back.
        const before = core.view().pipelines.map(({ epoch }) => epoch?.plan);
        core.membership.gone(connection, "its process was killed");
        const after = core.view().pipelines.map(({ epoch }) => epoch?.plan);
        const lost = cluster.steps.filter(({ pipeline }) => before[pipeline!] !== after[pipeline!]);
        for (const gone of lost) cluster.steps.splice(cluster.steps.indexOf(gone), 1);
        return;
      }
      case "lose step": {
        const index = cluster.steps.findIndex(({ pipeline }) => pipeline === step.pipeline);
        if (index >= 0) cluster.steps.splice(index, 1);
        // Idle workers and a step that is away: noticed within seconds.
        if (index >= 0) this.pass(8_000);
        return;
      }
      case "revive":
        this.revive(step.worker);
        return;
      case "link":
        cluster.linkOnly();
        return;
      case "pass":
        this.pass(step.ms);
    }
  }

  /** Nothing is lost any more, and all come back. */
  settle(): void {
    for (let worker = 0; worker < 5; worker++) this.revive(worker);
    for (let round = 0; round < 200 && this.cluster.core.requestCount > 0; round++) {
      this.pass(500);
      this.cluster.linkOnly();
      this.cluster.answerAll();
    }
  }
}

describe("requests in two pipelines whose workers come and go", () => {
  it("end once, with the right tokens, and give all blocks back", () => {
    let moved = 0;
    fc.assert(
      fc.property(
        fc.array(action, { minLength: 10, maxLength: 80 }),
        fc.boolean(),
        (actions, speculation) => {
          const scenario = new Scenario(speculation);
          const { cluster } = scenario;
          for (const step of actions) scenario.run(step);
          scenario.settle();
          expect(cluster.core.requestCount).toBe(0);
          for (const [id, { prompt, tokens, choices }] of scenario.admitted) {
            const events = cluster.events.get(requestId(id)) ?? [];
            expect(cluster.endings.get(requestId(id))).toBe(1);
            if (scenario.cancelled.has(id)) continue;
            const errors = events.flatMap((event) => (event.type === "error" ? event.error.code : []));
            // A request that was there at three losses in a row is set aside, rightly or not.
            if (errors.includes("request_poisoned")) continue;
            expect(errors).toEqual([]);
            for (let choice = 0; choice < choices; choice++) {
              const mine = events.filter((event) => "choice" in event && event.choice === choice);
              const got = mine.flatMap((event) => (event.type === "tokens" ? event.tokens : []));
              expect(got).toEqual(expectedTokens(prompt, tokens));
              expect(mine.filter(({ type }) => type === "finish")).toHaveLength(1);
            }
            if (scenario.losses > 0) moved++;
          }
          const { blocks, sequences, pipelines } = cluster.core.view();
          expect([blocks.used, sequences]).toEqual([0, { running: 0, waiting: 0 }]);
          expect(pipelines.every(({ microBatchesInFlight }) => microBatchesInFlight === 0)).toBe(true);
          // No worker is in two pipelines.
          const workers = pipelines.flatMap(({ stages }) => stages.map(({ worker }) => worker));
          expect(new Set(workers).size).toBe(workers.length);
        },
      ),
      { seed: 7, numRuns: 150 },
    );
    expect(moved).toBeGreaterThan(150);
  });
});
