import { describe, expect, it } from "vitest";
import { defaultAssumptions } from "../../simulation/hardware/assumptions.js";
import { oneHost, parseGpus } from "../../simulation/hardware/hardware.js";
import { simulate } from "../../simulation/hardware/simulate.js";
import { timelineSvg } from "../../simulation/hardware/svg.js";
import { RooflineTimer } from "../../simulation/hardware/timing.js";
import { closed, optionsFor, publishedModel, rigOf, roomy } from "./support.js";

describe("a simulated pipeline", () => {
  it.each([
    ["2 equal", ["3090", "3090"], 8],
    ["2 unequal", ["3090", "2080ti"], 8],
    ["4 equal", ["3090", "3090", "3090", "3090"], 16],
    ["4 unequal", ["3090", "2080ti", "4090", "2080ti"], 16],
    ["8 equal", Array.from({ length: 8 }, () => "3090"), 32],
    ["8 unequal", Array.from({ length: 8 }, (_, index) => (index % 2 === 0 ? "3090" : "2080ti")), 32],
    ["70 equal", Array.from({ length: 70 }, () => "3090"), 140],
    ["70 unequal", Array.from({ length: 70 }, (_, index) => (index % 2 === 0 ? "3090" : "2080ti")), 140],
  ])("of %s stages is as busy as the formula allows", async (_, names, clients) => {
    const model = await publishedModel("glm-130b");
    const hardware = rigOf(...names);
    const replies = names.length > 8 ? 120 : 60;
    const { figures } = simulate(optionsFor(model, hardware, closed(clients, clients, 1, replies)));
    // With M micro-batches that saturate the slowest stage, stage i is busy for t_i / max t.
    const rows = Math.round(figures.rowsPerStep);
    const parts = Array.from({ length: rows }, () => ({ start: replies / 2, rows: 1, context: 0 }));
    const keys = rows * (replies / 2 + 1);
    const work = { parts, rows, keyPairs: keys, keyReads: keys, sampled: rows, slice: null };
    const times = figures.stages.map(({ worker, layerBegin, layerEnd }) => {
      const device = roomy(names[Number(worker.slice("worker".length))]!);
      return new RooflineTimer(model, { layerBegin, layerEnd }, device, defaultAssumptions).cost(work).ms;
    });
    const slowest = Math.max(...times);
    for (const [stage, { utilisation }] of figures.stages.entries()) {
      expect(utilisation / (times[stage]! / slowest)).toBeGreaterThan(0.95);
    }
  });

  it("learns its times though contexts wait all the time, each step with a slice of one", async () => {
    const model = await publishedModel("glm-130b");
    const load = closed(16, 48, 256, 128);
    const { figures } = simulate(optionsFor(model, oneHost(parseGpus("8x3090")), load));
    // 334 ms where nothing was learned: all slices one layer, all in the same stage.
    expect(figures.itlMs!.p50).toBeLessThan(250);
  });

  it("decodes one stream at the sum of its stages and hops", async () => {
    const model = await publishedModel("glm-4-9b");
    const hardware = rigOf("3090", "3090");
    const { figures } = simulate(optionsFor(model, hardware, closed(1, 2, 64, 64)));
    const bytes = model.placement.layerBytes.reduce((sum, of) => sum + of, model.placement.headBytes);
    const readMs = (1_000 * bytes) / (0.7 * 936e9);
    // 40 layers of 30 us, two steps of 200 us, three hops of 150 us, the coordinator's 103 us.
    const fixedMs = 40 * 0.03 + 0.4 + 3 * 0.15 + 0.103;
    expect(figures.itlMs!.p50).toBeGreaterThan(readMs + fixedMs);
    expect(figures.itlMs!.p50).toBeLessThan(1.05 * (readMs + fixedMs));
    expect(figures.tokens).toBe(128);
  });

  it("has learnt from loads before it, and counts nothing of them", async () => {
    const model = await publishedModel("glm-4-9b");
    const hardware = rigOf("3090", "3090");
    const alone = optionsFor(model, hardware, closed(8, 16, 64, 32));
    const earlier = closed(1, 3, 64, 64);
    const { figures } = simulate({ ...alone, earlier: [earlier] });
    expect([figures.requests, figures.tokens]).toEqual([16, 16 * 32]);
    expect(figures.ttftMs!.count).toBe(16);
    const cold = simulate(alone).figures;
    expect(figures.seconds / cold.seconds).toBeGreaterThan(0.5);
    expect(figures.seconds / cold.seconds).toBeLessThan(1.5);
    expect(figures.steps).toBeLessThan(2 * cold.steps);
    expect(figures.seconds).not.toBe(cold.seconds);
  });

  it("is the same for the same seed, and another one for another", async () => {
    const model = await publishedModel("chatglm2-6b");
    const run = (seed: number) => {
      const load = closed(0, 40, 0, 0);
      const options = optionsFor(model, oneHost(parseGpus("2x3090")), {
        ...load,
        arrivals: { kind: "open", perSecond: 20 },
        prompt: { kind: "uniform", least: 16, most: 200 },
        reply: { kind: "exponential", mean: 30 },
      });
      const simulation = simulate({ ...options, seed, acceptance: 0.6 });
      return { ...simulation.figures, svg: timelineSvg(simulation, "model") };
    };
    const first = run(1);
    expect(run(1)).toEqual(first);
    expect(run(2).seconds).not.toBe(first.seconds);
    expect(first.requests).toBe(40);
  });

  it("answers all, and goes on where it was, when a worker dies and comes back", async () => {
    const model = await publishedModel("chatglm2-6b");
    const load = closed(4, 16, 64, 200);
    const kills = [{ worker: 1, atMs: 500, backAfterMs: 1_000 }];
    const options = optionsFor(model, oneHost(parseGpus("3x3090")), load, {
      kills,
      timeline: { fromMs: 0, toMs: 10_000 },
    });
    const simulation = simulate(options);
    const { figures } = simulation;
    expect(figures).toMatchObject({ requests: 16, failed: 0, tokens: 16 * 200, cutOff: false });
    expect(figures.recoveries).toHaveLength(1);
    const [{ reason, seconds }] = figures.recoveries as [{ reason: string; seconds: number }];
    expect(reason).toBe("worker_lost");
    // A second until the process is there again, and the time that its weights take.
    const loadS = figures.stages[1]!.weightBytes / defaultAssumptions.loadBandwidth;
    expect(seconds).toBeGreaterThan(1 + loadS);
    expect(seconds).toBeLessThan(1 + loadS + 1);
    expect(figures.replayedRows).toBeGreaterThan(4 * 64);
    expect(timelineSvg(simulation, "m")).toContain('class="replay"');
  });

  it("goes on with fewer stages when the worker stays away", async () => {
    const model = await publishedModel("chatglm2-6b");
    const kills = [{ worker: 0, atMs: 300, backAfterMs: null }];
    const { figures } = simulate(
      optionsFor(model, oneHost(parseGpus("3x3090")), closed(2, 4, 32, 100), { kills }),
    );
    expect(figures).toMatchObject({ requests: 4, failed: 0, tokens: 400 });
    // Others wait ten seconds for a lost one.
    expect(figures.recoveries[0]!.seconds).toBeGreaterThan(10);
  });

  it("gives a dead worker's layers to a spare, which nobody waits for", async () => {
    const model = await publishedModel("chatglm2-6b");
    const kills = [{ worker: 0, atMs: 300, backAfterMs: null }];
    const hardware = oneHost(parseGpus("3x3090"), 1, 2);
    const { figures } = simulate(optionsFor(model, hardware, closed(2, 4, 32, 100), { kills }));
    expect(figures).toMatchObject({ requests: 4, failed: 0, tokens: 400 });
    expect(figures.recoveries[0]!.seconds).toBeLessThan(3);
  });

  it("tells what is missing when the model does not fit", async () => {
    const model = await publishedModel("glm-130b");
    const run = () => simulate(optionsFor(model, oneHost(parseGpus("2x3090")), closed(1, 1, 8, 8)));
    expect(run).toThrow(/the model does not fit: .* lacks \d+ more/);
  });

  it("gains by guesses that hold", async () => {
    const model = await publishedModel("glm-4-9b");
    const rate = (acceptance: number | null) =>
      simulate(optionsFor(model, oneHost(parseGpus("2x3090")), closed(1, 3, 16, 400), { acceptance }))
        .figures;
    const without = rate(null);
    const often = rate(0.8);
    expect(often.tokensPerSecond).toBeGreaterThan(1.5 * without.tokensPerSecond);
    expect(often.acceptedTokens / often.draftedTokens).toBeGreaterThan(0.4);
    expect(without.draftedTokens).toBe(0);
  });

  it("keeps interactive requests quick beside a batch", async () => {
    const model = await publishedModel("glm-4-9b");
    const load = { ...closed(32, 96, 64, 64), interactiveShare: 0.2 };
    const { figures } = simulate(optionsFor(model, oneHost(parseGpus("2x3090")), load));
    const { interactive, batch } = figures.classes;
    expect(interactive!.requests + batch!.requests).toBe(96);
    expect(interactive!.ttftMs!.p50).toBeLessThan(batch!.ttftMs!.p50);
  });
});
