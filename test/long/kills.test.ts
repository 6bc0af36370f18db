/**
 * Workers killed with SIGKILL again and again, at random points under load: every request is answered, with
 * the bytes of an undisturbed run. The first cluster has all at once that may change how an answer comes about:
 * an INT8 cache with few blocks, small chunks, shared prompts, guesses, classes, tenants, clients that leave.
 * GLM_RELAY_SEED replays a run's choices (not its timing).
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fixtureFolder, readExpected } from "../golden/support.js";
import { seededRandom } from "../native/support.js";
import { demoModel, TestCluster } from "../support/cluster.js";

const seed = Number(process.env.GLM_RELAY_SEED ?? 20_261_125);
const clients = 8;
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
  prefillChunk?: number;
  /** KV blocks, about; absent: as many as there is memory for. */
  blocks?: number;
  /** What must have happened on the way. */
  counters: ("preemptions" | "prefixCacheHits" | "acceptedTokens")[];
  kills: number;
  bodies: Body[];
}

const random = seededRandom(seed);
const below = (bound: number) => Math.floor(random() * bound);

const sampled = { temperature: 0.9, top_p: 0.95, top_k: 40, logprobs: 2, ignore_eos: true };
/** Begins as others do, or says the same again and again, or neither. */
const words = (count: number) => Array.from({ length: count }, () => below(1_500));
const shared = words(70);
const phrase = words(9);
const prompts = [
  () => words(1 + below(120)),
  () => [...shared, ...words(1 + below(40))],
  () => Array.from({ length: 5 }, () => phrase).flat(),
];
const demoBodies = Array.from({ length: 24 }, (_, i): Body => {
  const prompt = prompts[i % prompts.length]!();
  const body = { prompt, ...sampled, seed: i, max_tokens: 40 + below(160), return_tokens_as_token_ids: true };
  if (i % 4 === 1) return { ...body, temperature: 0, echo: true };
  return i % 4 === 2 ? { ...body, n: 3 } : body;
});
const glm130b = readExpected("glm-130b-tiny");
const { mask, sop, gmask } = glm130b.ids!;
const blankBodies = Array.from({ length: 8 }, (_, i): Body => {
  const some = (count: number) => Array.from({ length: count }, () => 1 + below(90));
  const prompt = [...some(8), mask, ...some(5), mask, ...some(3), sop];
  return { prompt, ...sampled, seed: i, max_tokens: 20 };
});

const loads: Load[] = [
  {
    name: "a causal model",
    model: demoModel,
    stages: 3,
    flags: ["--itl-target-ms", "5"],
    prefillChunk: 32,
    blocks: 60,
    counters: ["preemptions", "prefixCacheHits", "acceptedTokens"],
    kills: 100,
    bodies: demoBodies,
  },
  {
    name: "a prefix-LM that fills blanks",
    model: fixtureFolder("glm-130b-tiny"),
    stages: 2,
    flags: [
      ...["--set", `mask_token_id=${mask}`],
      ...["--set", `gmask_token_id=${gmask}`],
      ...["--set", `sop_token_id=${sop}`],
    ],
    counters: [],
    kills: 20,
    bodies: blankBodies,
  },
];

/** Memory of each worker that holds about so many blocks. */
async function memoryFor(blocks: number, options: Parameters<typeof TestCluster.start>[0]): Promise<string> {
  const roomy = await TestCluster.start(options);
  try {
    const view = await roomy.view();
    const bytes = view.stages.map(
      ({ planned: { weightBytes, kvBytes, workspaceBytes, processBytes } }) =>
        weightBytes + workspaceBytes + processBytes + Math.ceil((kvBytes / view.blocks.total) * blocks),
    );
    return `${Math.max(...bytes)}`;
  } finally {
    await roomy.stop();
  }
}

const headersOf = (which: number): Record<string, string> => ({
  "x-glm-class": which % 3 === 0 ? "batch" : "interactive",
  "x-glm-tenant": which % 4 === 0 ? "one" : "other",
});

describe.each(loads)("$name, $kills kills", (load) => {
  const { model, stages, flags, prefillChunk, blocks, counters, kills, bodies } = load;
  let cluster: TestCluster;
  beforeAll(async () => {
    const options = { model, stages, prefillChunk, precision: ["--kv", "int8", ...flags] };
    const memory = blocks === undefined ? undefined : await memoryFor(blocks, options);
    cluster = await TestCluster.start({ ...options, memory });
  });
  afterAll(() => cluster?.stop());

  /** Refused while the cluster re-forms: asked again. Anything else is an answer. */
  async function ask(which: number): Promise<unknown> {
    for (;;) {
      const answer = await cluster.post("/v1/completions", bodies[which]!, headersOf(which));
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
    for (const which of bodies.keys()) expected.push(await ask(which));
    let killed = 0;
    let answered = 0;
    let interrupted = 0;
    const client = async (first: number) => {
      for (let i = first; killed < kills; i++) {
        const which = i % bodies.length;
        const before = killed;
        expect(await ask(which), `request ${which}, seed ${seed}`).toEqual(expected[which]);
        answered++;
        if (killed > before) interrupted++;
      }
    };
    /** Asks and leaves before the answer is complete. */
    const leaver = async () => {
      while (killed < kills) {
        const signal = AbortSignal.timeout(10 + below(700));
        const body = JSON.stringify({ ...bodies[below(bodies.length)]!, stream: true });
        const headers = { "content-type": "application/json" };
        const url = `${cluster.url}/v1/completions`;
        const left = fetch(url, { method: "POST", headers, body, signal }).then((answer) => answer.text());
        await left.catch((error: Error) => expect(error.name).toMatch(/TimeoutError|AbortError/));
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
    const asking = Array.from({ length: clients }, (_, i) => client(4 * i));
    await Promise.all([killer(), leaver(), ...asking]);
    console.log(`${killed} kills, ${answered} answers, ${interrupted} of them across a kill, all equal`);
    expect(interrupted).toBeGreaterThan(kills / 4);
    const view = await cluster.until("all blocks to be back", ({ blocks }) => blocks.used === 0);
    expect([view.sequences.running, view.sequences.waiting]).toEqual([0, 0]);
    const { preemptions, prefixCacheHits, acceptedTokens, draftedTokens } = view.counters;
    console.log({ preemptions, prefixCacheHits, acceptedTokens, draftedTokens, blocks: view.blocks.total });
    for (const counter of counters) expect(view.counters[counter], counter).toBeGreaterThan(0);
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
