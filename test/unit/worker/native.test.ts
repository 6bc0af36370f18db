/** Workers with the real engine and a tiny random ChatGLM3: tokens as the independent reference has them. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { bytesFromInt32 } from "../../../common/bytes.js";
import { packageRoot } from "../../../common/package.js";
import { nativeEngine } from "../../../worker/stage/native-engine.js";
import { LinkClient } from "./support/link-client.js";
import { assignment } from "./support/scripted-coordinator.js";
import { startCoordinator, startTestWorker } from "./support/start.js";
import { greedy, headerOf, rowsOf, stepOf } from "./support/steps.js";

const directory = join(packageRoot, "test/golden/fixtures/chatglm3-tiny");
const expected = JSON.parse(readFileSync(join(directory, "expected.json"), "utf8")) as {
  tokenCount: number;
  cases: { prompt: number[]; tokens: number[] }[];
};
/** The fixture has no tokenizer that would say which rows of the head are no tokens: they are banned instead. */
const sampling = {
  ...greedy!,
  bannedTokens: bytesFromInt32(
    Array.from({ length: 131 - expected.tokenCount }, (_, i) => expected.tokenCount + i),
  ),
};

/** Prefill, then one token per step, over workers that share the four layers; returns tokens and prompt logprobs. */
async function generate(prompt: number[], count: number, cuts: [number, number][]) {
  const coordinator = await startCoordinator();
  const { fingerprint } = await openModel(directory);
  const sessions = [];
  let predecessor = coordinator.address;
  for (const [stage, [layerBegin, layerEnd]] of cuts.entries()) {
    const worker = await startTestWorker(coordinator.address, nativeEngine(), { id: `w${stage}` });
    const session = await coordinator.welcomed(1);
    session.send({
      assign: assignment(coordinator, {
        stage,
        stageCount: cuts.length,
        layerBegin,
        layerEnd,
        modelDirectory: directory,
        weightsFingerprint: fingerprint,
        predecessor,
      }),
    });
    sessions.push(session);
    predecessor = worker.address;
  }
  const link = await coordinator.links.next();
  link.open();
  await Promise.all(sessions.map((session) => session.state("LINKED")));
  const results = new LinkClient(predecessor, { fromStage: cuts.length });
  await results.opened();

  const tokens: number[] = [];
  let logprobs: number[] = [];
  for (let step = 1; step <= count; step++) {
    const rows =
      step === 1
        ? rowsOf(1, prompt, {
            newBlocks: bytesFromInt32([3, 1, 6]),
            scoreTargets: bytesFromInt32([...prompt.slice(1), -1]),
            sampling,
          })
        : rowsOf(1, [tokens.at(-1)!], { validLength: prompt.length + step - 2, sampling });
    link.send(stepOf(headerOf(step, [rows])));
    const { result } = await results.frames.next();
    results.credit(1);
    const [sequence] = result!.sequences!;
    tokens.push(sequence!.drawn![0]!.token!);
    if (step === 1) logprobs = sequence!.scores!.map(({ logprob }) => Number(logprob));
  }
  await results.closeNow();
  return { tokens, logprobs };
}

const whole: [number, number][] = [[0, 4]];
const parts: [number, number][] = [
  [0, 1],
  [1, 3],
  [3, 4],
];

test.each(expected.cases)(
  "$prompt is continued as the reference does, by one stage and by three",
  async (reference) => {
    const { prompt, tokens } = reference;
    const one = await generate(prompt, tokens.length, whole);
    expect(one.tokens).toEqual(tokens);
    const three = await generate(prompt, tokens.length, parts);
    // Bit for bit, logprobs too.
    expect(three).toEqual(one);
  },
);
