/**
 * Workers killed with SIGKILL again and again, at random points under load: every request is answered, with
 * the bytes of an undisturbed run. GLM_RELAY_SEED replays a run's choices (not its timing).
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fixtureFolder, readExpected } from "../golden/support.js";
import { seededRandom } from "../native/support.js";
import { demoModel, TestCluster } from "../support/cluster.js";

const seed = Number(process.env.GLM_RELAY_SEED ?? 20_261_125);
const clients = 6;
/**
 * Between a cluster that serves again and the next kill lie some steps and then a pause. Without a token in
 * between, kills look like a request that kills, and it would be set aside.
 */
const stepsBetween = 8;
const mostPauseMs = 800;

type Body = Record<string, unknown>;

interface Load {
  name: string;
  model: string;
  stages: number;
  flags: string[];
  kills: number;
  bodies: Body[];
}

const random = seededRandom(seed);
const below = (bound: number) => Math.floor(random() * bound);

const sampled = { temperature: 0.9, top_p: 0.95, top_k: 40, logprobs: 2, ignore_eos: true };
const demoBodies = Array.from({ length: 12 }, (_, i): Body => {
  const prompt = Array.from({ length: 1 + below(120) }, () => below(1_500));
  const body = { prompt, ...sampled, seed: i, max_tokens: 40 + below(160), return_tokens_as_token_ids: true };
  if (i % 4 === 1) return { ...body, temperature: 0, echo: true };
  return i % 4 === 2 ? { ...body, n: 3 } : body;
});
const glm130b = readExpected("glm-130b-tiny");
const { mask, sop, gmask } = glm130b.ids!;
const blankBodies = Array.from({ length: 8 }, (_, i): Body => {
  const words = (count: number) => Array.from({ length: count }, () => 1 + below(90));
  const prompt = [...words(8), mask, ...words(5), mask, ...words(3), sop];
  return { prompt, ...sampled, seed: i, max_tokens: 20 };
});

const loads: Load[] = [
  { name: "a causal model", model: demoModel, stages: 3, flags: [], kills: 100, bodies: demoBodies },
  {
    name: "a prefix-LM that fills blanks",
    model: fixtureFolder("glm-130b-tiny"),
    stages: 2,
    flags: [
      ...["--set", `mask_token_id=${mask}`],
      ...["--set", `gmask_token_id=${gmask}`],
      ...["--set", `sop_token_id=${sop}`],
    ],
    kills: 20,
    bodies: blankBodies,
  },
];

describe.each(loads)("$name, $kills kills", ({ model, stages, flags, kills, bodies }) => {
  let cluster: TestCluster;
  beforeAll(async () => {
    cluster = await TestCluster.start({ model, stages, precision: ["--kv", "int8", ...flags] });
  });
  afterAll(() => cluster?.stop());

  /** Refused while the cluster re-forms: asked again. Anything else is an answer. */
  async function ask(body: Body): Promise<unknown> {
    for (;;) {
      const answer = await cluster.post("/v1/completions", body);
      if (answer.status === 503 && answer.body.error.code === "model_loading") {
        await sleep(50);
        continue;
      }
      expect(answer.status, JSON.stringify(answer.body)).toBe(200);
      const { prompt_tokens, completion_tokens } = answer.body.usage;
      return { choices: answer.body.choices, prompt_tokens, completion_tokens };
    }
  }

  it("every answer is that of an undisturbed run", async () => {
    const expected: unknown[] = [];
    for (const body of bodies) expected.push(await ask(body));
    let killed = 0;
    let answered = 0;
    let interrupted = 0;
    const client = async (first: number) => {
      for (let i = first; killed < kills; i++) {
        const which = i % bodies.length;
        const before = killed;
        expect(await ask(bodies[which]!), `request ${which}, seed ${seed}`).toEqual(expected[which]);
        answered++;
        if (killed > before) interrupted++;
      }
    };
    const killer = async () => {
      for (; killed < kills; killed++) {
        await cluster.revive();
        const { steps } = (await cluster.view()).counters;
        await cluster.until("steps", ({ counters }) => counters.steps >= steps + stepsBetween);
        await sleep(below(mostPauseMs));
        const worker = cluster.workers[below(stages)]!;
        worker.kill("SIGKILL");
        await worker.exited;
      }
      await cluster.revive();
    };
    await Promise.all([killer(), ...Array.from({ length: clients }, (_, i) => client(2 * i))]);
    console.log(`${killed} kills, ${answered} answers, ${interrupted} of them across a kill, all equal`);
    expect(interrupted).toBeGreaterThan(kills / 4);
    const view = await cluster.until("all blocks to be back", ({ blocks }) => blocks.used === 0);
    expect([view.sequences.running, view.sequences.waiting]).toEqual([0, 0]);
  });
});

describe("a worker that stays away", () => {
  it("leaves its layers to the others, and takes them again when it is back and nothing runs", async () => {
    const cluster = await TestCluster.start({ model: demoModel, stages: 3 });
    try {
      const body = { ...demoBodies[0]!, max_tokens: 900 };
      const expected = await cluster.post("/v1/completions", body);
      const running = cluster.post("/v1/completions", body);
      await cluster.until("the request to run", (view) => view.sequences.running > 0);
      cluster.workers[1]!.kill("SIGKILL");
      const { status, body: answer } = await running;
      expect(status).toBe(200);
      expect(answer.choices).toEqual(expected.body.choices);
      expect((await cluster.view()).stages).toHaveLength(2);
      cluster.startWorker(1);
      const all = (view: { state: string; stages: unknown[] }) =>
        view.state === "ready" && view.stages.length === 3;
      await cluster.until("all stages to be back", all);
      expect((await cluster.post("/v1/completions", body)).body.choices).toEqual(expected.body.choices);
    } finally {
      await cluster.stop();
    }
  });
});
