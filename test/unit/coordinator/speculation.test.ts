/** Drafts change how many tokens a step brings, and nothing that anybody is told. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { bytesFromInt32 } from "../../../common/bytes.js";
import { pipelineId, requestId, type SequenceId, sequenceId } from "../../../common/ids.js";
import { kvBlockSize, maxDraftRows } from "../../../common/limits.js";
import type { GenerationRequest, RequestEvent } from "../../../coordinator/inference.js";
import { Pipeline, sequenceSampling } from "../../../coordinator/pipeline/pipeline.js";
import type { ScheduledStep } from "../../../coordinator/scheduler/scheduled-step.js";
import { Scheduler, type SchedulerLimits } from "../../../coordinator/scheduler/scheduler.js";
import { type StepTiming, unmeasured } from "../../../coordinator/scheduler/timing/step-timing.js";
import type { StepHeader } from "../../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import {
  expectedTokens,
  FakeCluster,
  type FakeModel,
  generation,
  sampling,
  stopToken,
} from "../../support/fake-cluster.js";

const ids = (count: number, first = 1): number[] => Array.from({ length: count }, (_, i) => first + i);

const limits: SchedulerLimits = {
  blockCount: 64,
  stageCount: 1,
  microBatches: 1,
  prefixLength: 0,
  maxStepRows: 32,
  prefillChunk: 16,
  firstExpectedReply: 1_000,
  speculation: true,
};
/** Rows cost next to nothing: whatever is likely at all is guessed at. */
const bold: StepTiming = { ...unmeasured, kneeRows: () => 1_000 };
const id = (value: number): SequenceId => sequenceId(value);

/** Completes a step with these tokens for its only sequence. */
function decide(scheduler: Scheduler, step: ScheduledStep, tokens: readonly number[]): void {
  scheduler.complete(step.step);
  for (const token of tokens) scheduler.append(step.rows[0]!.sequence, token);
}

describe("the scheduler with speculation", () => {
  const loop = [1, 2, 3, 1, 2, 3, 1, 2, 3, 1];

  it("sends guesses behind the decided row, and goes on behind those that held", () => {
    const scheduler = new Scheduler(limits);
    scheduler.submit(id(1), loop, 40);
    decide(scheduler, scheduler.next()!, [2]);
    const first = scheduler.next()!;
    const [rows] = first.rows as [(typeof first.rows)[0]];
    expect(rows).toMatchObject({ start: 10, sample: true });
    expect(rows.draftRows).toBeGreaterThan(0);
    expect(rows.tokens).toEqual([2, 3, 1, 2, 3, 1, 2, 3].slice(0, 1 + rows.draftRows));
    // The first guess holds, what is drawn behind it is something else.
    decide(scheduler, first, [3, 9]);
    expect(scheduler.next()!.rows[0]).toMatchObject({ start: 12, tokens: [9], reused: 0, first: false });
  });

  it("never reaches beyond the last token, a change of the rules, or the step's rows", () => {
    const run = (maxTokens: number, options = {}, changes: Partial<SchedulerLimits> = {}) => {
      const scheduler = new Scheduler({ ...limits, ...changes }, bold);
      scheduler.submit(id(1), loop, maxTokens, options);
      const seen: { length: number; draft: number }[] = [];
      let length = loop.length;
      for (let step = scheduler.next(); step !== null; step = scheduler.next()) {
        const [rows] = step.rows as [(typeof step.rows)[0]];
        const drawn = rows.sample ? 1 + rows.draftRows : 0;
        seen.push({ length, draft: rows.draftRows });
        scheduler.complete(step.step);
        for (let n = 0; n < drawn; n++) scheduler.append(id(1), loop[length++ % 3]!);
        if (length >= loop.length + maxTokens) {
          expect(length).toBe(loop.length + maxTokens);
          scheduler.remove(id(1));
          break;
        }
      }
      expect(scheduler.blocksUsed).toBe(0);
      return seen;
    };
    const free = run(60);
    expect(Math.max(...free.map(({ draft }) => draft))).toBe(maxDraftRows);
    for (const change of [12, 20, 27]) {
      const bound = run(60, { rulesChangeAt: change });
      for (const { length, draft } of bound) {
        if (length < change) expect(length + draft, `${length}`).toBeLessThan(change);
      }
      expect(bound.some(({ draft }) => draft > 0)).toBe(true);
    }
    expect(Math.max(...run(60, {}, { maxStepRows: 4 }).map(({ draft }) => draft))).toBe(3);
  });

  it("lets no rejected row into the prefix cache", () => {
    const scheduler = new Scheduler({ ...limits, prefillChunk: 32 }, bold);
    const prompt = [...loop, 2, 3, 1, 2];
    scheduler.submit(id(1), prompt, 40);
    decide(scheduler, scheduler.next()!, [3]);
    const step = scheduler.next()!;
    // Its rows fill the block and reach into the next one; then the guesses turn out wrong.
    expect(step.rows[0]!.start + step.rows[0]!.tokens.length).toBeGreaterThan(kvBlockSize);
    const guessed = [...prompt, ...step.rows[0]!.tokens];
    decide(scheduler, step, [9]);
    const other = (tokens: readonly number[], at: number) => {
      scheduler.submit(id(at), tokens, 1);
      const next = scheduler.next()!;
      const reused = next.rows.find(({ sequence }) => sequence === at)!.reused;
      scheduler.complete(next.step);
      for (const { sequence } of next.rows) scheduler.append(sequence, 7);
      scheduler.remove(id(at));
      return reused;
    };
    expect(guessed.length).toBeGreaterThan(kvBlockSize);
    expect(other(guessed, 2)).toBe(0);
    // What was really decided is known, once its rows have travelled.
    const decided = [...prompt, 3, 9];
    expect(other([...decided, 7, 7, 5, 5], 3)).toBe(kvBlockSize);
  });

  it("takes no block for a guess that another sequence may need", () => {
    const prompt = [...loop, 2, 3, 1, 2];
    const scheduler = new Scheduler({ ...limits, blockCount: 2 }, bold);
    scheduler.submit(id(1), prompt, 18);
    decide(scheduler, scheduler.next()!, [3]);
    const [alone] = scheduler.next()!.rows;
    expect(alone!.start + alone!.tokens.length).toBeGreaterThan(kvBlockSize);
    const crowded = new Scheduler({ ...limits, blockCount: 3, firstExpectedReply: 1 }, bold);
    crowded.submit(id(1), prompt, 18);
    crowded.submit(
      id(2),
      prompt.map((token) => token + 10),
      18,
    );
    const step = crowded.next()!;
    crowded.complete(step.step);
    crowded.append(id(1), 3);
    crowded.append(id(2), 13);
    const next = crowded.next()!;
    expect(next.rows).toHaveLength(2);
    // One block is left for two: the drafts end with the blocks that are there.
    for (const { start, tokens, newBlocks, draftRows } of next.rows) {
      expect([start + tokens.length <= kvBlockSize, newBlocks]).toEqual([true, []]);
      expect(draftRows).toBeGreaterThan(0);
    }
  });
});

/** Repetitive, ordinary and misleading text: what is drawn is a function of the tokens before. */
const models: Record<string, FakeModel> = {
  "sum of all": (tokens) => tokens.reduce((sum, token) => sum + token, 1) % 10,
  loop: (tokens) => tokens.length % 5,
  "a loop that breaks": (tokens) =>
    tokens.length % 7 === 0 ? tokens.reduce((a, b) => a + b, 0) % 9 : tokens.length % 3,
  "always the same": () => 4,
  "the last two": (tokens) => ((tokens.at(-1) ?? 0) * 3 + (tokens.at(-2) ?? 0) * 5 + 1) % 7,
};

/** Requests of all kinds, told apart by their number. */
function requestOf(index: number, shape: RequestShape): GenerationRequest {
  const prompt = Array.from({ length: shape.prompt }, (_, i) => (i * shape.stride) % shape.alphabet);
  const request = generation(`r${index}`, prompt, {
    maxTokens: shape.maxTokens,
    minTokens: Math.min(shape.minTokens, shape.maxTokens),
    ignoreEos: shape.ignoreEos,
    stop: shape.stop === null ? [] : [shape.stop],
    topLogprobs: shape.logprobs ? 0 : -1,
    promptLogprobs: shape.scores,
  });
  const context = {
    length: Math.max(1, shape.prompt - 1),
    mask: -1,
    constantPosition: false,
    remainingMasks: [],
  };
  const choice = {
    promptTokens: prompt,
    seed: "1",
    ...(shape.prefixLm && shape.prompt > 1 ? { context } : {}),
  };
  return { ...request, choices: Array.from({ length: shape.choices }, () => choice) };
}

const shapes = fc.record({
  prompt: fc.integer({ min: 1, max: 60 }),
  stride: fc.integer({ min: 1, max: 5 }),
  alphabet: fc.integer({ min: 1, max: 9 }),
  maxTokens: fc.integer({ min: 1, max: 60 }),
  minTokens: fc.constantFrom(0, 0, 3, 20),
  ignoreEos: fc.boolean(),
  stop: fc.constantFrom(null, null, "12", "341", "444", "0"),
  logprobs: fc.boolean(),
  scores: fc.constantFrom(false, false, true),
  prefixLm: fc.constantFrom(false, false, true),
  choices: fc.constantFrom(1, 1, 2),
});
type RequestShape = typeof shapes extends fc.Arbitrary<infer T> ? T : never;

describe("speculation in the core", () => {
  const eventsWith = (
    requests: readonly GenerationRequest[],
    options: ConstructorParameters<typeof FakeCluster>[0],
    disturb: (cluster: FakeCluster, round: number) => void = () => {},
  ) => {
    const cluster = new FakeCluster(options);
    cluster.start();
    for (const request of requests) cluster.core.admit(request);
    let rounds = 0;
    for (; cluster.core.requestCount > 0; rounds++) {
      expect(rounds).toBeLessThan(20_000);
      disturb(cluster, rounds);
      if (cluster.steps.length > 0) cluster.answer();
    }
    // What a stop string ended may still have a row on its way.
    cluster.answerAll();
    const { used } = cluster.core.view().blocks;
    expect(used).toBe(0);
    return {
      events: requests.map(({ id: name }) => cluster.events.get(name)),
      rounds,
      counters: cluster.core.view().counters,
    };
  };

  it.each(Object.entries(models))("tells the same events as without it: %s", (_, model) => {
    fc.assert(
      fc.property(
        fc.array(shapes, { minLength: 1, maxLength: 5 }),
        fc.constantFrom(1, 2, 4),
        fc.constantFrom(5, 16, 256),
        fc.constantFrom(0, 5),
        fc.constantFrom(18, 64),
        (all, stageCount, prefillChunk, prefixLength, maxBlocks) => {
          const requests = all.map((shape, index) => requestOf(index, shape));
          const options = { stageCount, prefillChunk, prefixLength, maxBlocks, model };
          const off = eventsWith(requests, options);
          const on = eventsWith(requests, { ...options, speculation: true });
          expect(on.events.map(perChoice)).toEqual(off.events.map(perChoice));
          expect(off.counters.draftedTokens).toBe(0);
          expect(on.counters.acceptedTokens).toBeLessThanOrEqual(on.counters.draftedTokens);
        },
      ),
      { numRuns: 40, seed: 4 },
    );
  });

  it("needs fewer steps for text that repeats itself, and counts what it guessed", () => {
    const requests = [generation("x", [1, 2, 3], { maxTokens: 200 })];
    const model = models["loop"]!;
    const off = eventsWith(requests, { model, maxBlocks: 64 });
    const on = eventsWith(requests, { model, maxBlocks: 64, speculation: true });
    expect(on.events).toEqual(off.events);
    expect(on.rounds).toBeLessThan(off.rounds / 3);
    expect(on.counters.acceptedTokens).toBeGreaterThan(100);
    // Every step after the prompt draws one token that nobody guessed.
    expect(on.counters.acceptedTokens + on.rounds).toBe(200);
  });

  it("drops what stands behind a stop within a draft as if it had never been drawn", () => {
    // 0 1 2 3 4 0 1 2 ...: stops when "4012" is complete for the second time, within a draft.
    const model = models["loop"]!;
    const prompt = [9, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4];
    const requests = [generation("x", prompt, { maxTokens: 60, minTokens: 12, stop: ["34"] })];
    const on = eventsWith(requests, { model, speculation: true });
    const off = eventsWith(requests, { model });
    expect(on.events).toEqual(off.events);
    const finish = on.events[0]!.at(-1)!;
    expect(finish).toMatchObject({ type: "finish", reason: "stop", stopReason: "34" });
    expect(finish.type === "finish" && finish.completionTokens).toBeLessThan(20);
    expect(on.counters.acceptedTokens).toBeGreaterThan(4);
  });

  it("ends with a stop token inside a draft", () => {
    const model: FakeModel = (tokens) => (tokens.length === 30 ? stopToken : tokens.length % 4);
    const requests = [generation("x", [3, 0, 1, 2, 3, 0, 1, 2], { maxTokens: 60, ignoreEos: false })];
    const on = eventsWith(requests, { model, speculation: true });
    expect(on.events).toEqual(eventsWith(requests, { model }).events);
    expect(on.events[0]!.at(-1)).toMatchObject({ type: "finish", reason: "stop", completionTokens: 23 });
  });

  it("keeps rejected rows out of the prefix cache: a second turn is computed from what was decided", () => {
    const model = models["a loop that breaks"]!;
    const cluster = new FakeCluster({ model, speculation: true });
    cluster.start();
    let text = ids(10);
    for (let turn = 0; turn < 5; turn++) {
      cluster.core.admit(generation(`t${turn}`, text, { maxTokens: 40 }));
      cluster.answerAll();
      const reply = cluster.tokensOf(`t${turn}`);
      expect(reply).toEqual(expectedTokens(text, 40, model));
      const finish = cluster.events.get(requestId(`t${turn}`))!.at(-1)!;
      if (turn > 0) expect(finish.type === "finish" && finish.cachedTokens).toBeGreaterThanOrEqual(32);
      text = [...text, ...reply, 20 + turn, 2];
    }
    const { draftedTokens, acceptedTokens } = cluster.core.view().counters;
    expect(draftedTokens).toBeGreaterThan(acceptedTokens);
    expect(acceptedTokens).toBeGreaterThan(0);
  });

  it("is undone by a lost worker like any step: the answers are the same", () => {
    const model = models["loop"]!;
    const requests = [
      generation("a", [1, 2], { maxTokens: 40 }),
      generation("b", ids(40), { maxTokens: 30, stop: ["2340"], minTokens: 9 }),
    ];
    const undisturbed = eventsWith(requests, { model });
    for (let after = 1; after < 12; after++) {
      const disturbed = eventsWith(requests, { model, speculation: true }, (cluster, round) => {
        if (round !== after) return;
        cluster.core.membership.gone(1, "its control stream broke");
        cluster.join(3, { worker: "worker-1" });
        cluster.pass(6_000, [2, 3]);
        cluster.link();
      });
      expect(disturbed.events, `after ${after} steps`).toEqual(undisturbed.events);
    }
  });
});

/** Choices take turns by steps, and how much of a prompt was found computed depends on who ran before. */
function perChoice(events: readonly RequestEvent[] | undefined): Map<number | null, object[]> {
  const told = new Map<number | null, object[]>();
  for (const event of events!) {
    const choice = "choice" in event ? event.choice : null;
    told.set(choice, [...(told.get(choice) ?? []), { ...event, cachedTokens: null }]);
  }
  return told;
}

describe("the pipeline", () => {
  const token = (value: number, finite = true) => ({
    token: value,
    logprob: -1,
    rank: 1,
    topTokens: bytesFromInt32([]),
    topLogprobs: Buffer.alloc(0),
    finite,
  });
  const epoch = { term: 1, plan: 1 };

  /** What becomes of an answer to a step with the decided row 5 and the draft 6, 7. */
  function answered(drawn: ReturnType<typeof token>[], drawnPosition = 4) {
    const headers: StepHeader[] = [];
    const pipeline = new Pipeline(epoch, pipelineId(0), (header) => headers.push(header), 1);
    const rows = {
      sequence: id(1),
      start: 3,
      tokens: [5, 6, 7],
      first: false,
      reused: 0,
      newBlocks: [],
      sample: true,
      draftRows: 2,
    };
    pipeline.submit(
      { step: 1, copies: [], rows: [rows], ended: [], preempted: [], slice: null },
      {
        rows: () => ({
          requestId: "",
          context: null,
          sampling: sequenceSampling(sampling(), 1n),
          bannedTokens: [],
          scoreTargets: [],
        }),
        decodes: () => null,
        slice: () => {
          throw new Error("none is sent");
        },
      },
      0,
    );
    expect(headers[0]!.sequences![0]).toMatchObject({ rowCount: 3, draftRows: 2, validLength: 3 });
    const sequences = [{ sequence: 1, drawn, drawnPosition, scores: [] }];
    return pipeline.complete({ epoch, pipeline: 0, step: 1, sequences, stageUs: [1] })![0]!;
  }

  it.each([
    ["at once", [8], [8]],
    ["after one", [6, 8], [6, 8]],
    ["never", [6, 7, 8], [6, 7, 8]],
    ["never, and drew what looks like more of it", [6, 7, 7], [6, 7, 7]],
  ])("takes the tokens of an answer that left the draft %s", (_, drawn, tokens) => {
    const outcome = answered(drawn.map((value) => token(value)));
    expect([outcome.drawn.map((each) => each.token), outcome.finite]).toEqual([tokens, true]);
  });

  it("takes the tokens before one that is not finite, and says so", () => {
    const outcome = answered([token(6), token(0, false)]);
    expect([outcome.drawn.map((each) => each.token), outcome.finite]).toEqual([[6], false]);
  });

  it.each([
    ["no token", [], 4],
    ["more tokens than rows", [6, 7, 8, 9], 4],
    ["tokens behind one that is not the draft's", [8, 7], 4],
    ["tokens that end while the draft holds", [6], 4],
    ["tokens at another position", [8], 6],
  ])("refuses an answer with %s", (_, drawn, position) => {
    expect(() =>
      answered(
        drawn.map((value) => token(value)),
        position,
      ),
    ).toThrow("answers for sequence 1");
  });

  it("refuses tokens behind one that is not finite", () => {
    expect(() => answered([token(6, false), token(7), token(8)])).toThrow("answers for sequence 1");
  });
});
