/** The process of peer.ts: runs the task on llama.cpp, greedily, and prints the speeds as a line of JSON. */
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { parseResident } from "./memory.js";
import type { PeerFigures, PeerRun } from "./peer.js";
import { type RoundSpeeds, runTask } from "./speed-task.js";

/** The parts of node-llama-cpp 3 that are used. */
interface Library {
  getLlama(options: { gpu: false; build: "never"; maxThreads: number; logLevel: "error" }): Promise<Llama>;
}
interface Llama {
  loadModel(options: { modelPath: string }): Promise<Model>;
}
interface Model {
  createContext(options: {
    sequences: number;
    contextSize: number;
    batchSize: number;
    threads: { ideal: number; min: number };
  }): Promise<Context>;
}
interface Context {
  readonly sequencesLeft: number;
  getSequence(): Sequence;
  dispose(): Promise<void>;
}
interface Sequence {
  evaluate(tokens: number[], options: { temperature: 0; yieldEogToken: true }): AsyncGenerator<number>;
  dispose(): void;
}

const batchSize = 512;
/** A sequence is given back a moment after it has been disposed of. */
const reclaimPollMs = 1;

const { library, file, threads, task, round } = JSON.parse(process.argv[2]!) as PeerRun;
const { getLlama } = (await import(pathToFileURL(library).href)) as Library;
const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: "error" });
const began = performance.now();
const model = await llama.loadModel({ modelPath: file });
let loadSeconds = 0;
const longest = Math.max(...task.prefillLengths, Math.max(...task.contexts) + task.tokens);
const speeds: RoundSpeeds = { decode: {}, prefill: {} };
for (const [index, sequences] of task.sequenceCounts.entries()) {
  // Of just as many: it reads more of its cache where there is room for more sequences.
  const context = await model.createContext({
    sequences,
    contextSize: longest + 1,
    batchSize,
    threads: { ideal: threads, min: threads },
  });
  if (index === 0) loadSeconds = (performance.now() - began) / 1_000;
  const prefillLengths = index === 0 ? task.prefillLengths : [Math.min(...task.prefillLengths)];
  const own = { ...task, prefillLengths, sequenceCounts: [sequences] };
  const measured = await runTask((prompt, tokens) => generate(context, prompt, tokens), own, round);
  Object.assign(speeds.decode, measured.decode);
  speeds.prefill = { ...measured.prefill, ...speeds.prefill };
  if (index < task.sequenceCounts.length - 1) await context.dispose();
}

async function generate(context: Context, prompt: number[], tokens: number): Promise<number[]> {
  while (context.sequencesLeft === 0) await sleep(reclaimPollMs);
  const sequence = context.getSequence();
  const times: number[] = [];
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    times.push(performance.now());
    if (times.length === tokens) break;
  }
  sequence.dispose();
  return times;
}

const { anon, file: mapped, peak } = parseResident(readFileSync("/proc/self/status", "utf8"));
const figures: PeerFigures = {
  ...speeds,
  loadSeconds,
  anonymousBytes: anon,
  mappedBytes: mapped,
  peakBytes: peak,
};
process.stdout.write(`${JSON.stringify(figures)}\n`, () => process.exit(0));
