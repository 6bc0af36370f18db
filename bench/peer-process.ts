/** The process of peer.ts: runs the task on llama.cpp, greedily, and prints the speeds as a line of JSON. */
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { parseResident } from "./memory.js";
import type { PeerFigures, PeerRun } from "./peer.js";
import { runTask } from "./speed-task.js";

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
  getSequence(): Sequence;
}
interface Sequence {
  evaluate(tokens: number[], options: { temperature: 0; yieldEogToken: true }): AsyncGenerator<number>;
  dispose(): void;
}

const batchSize = 512;
/** Sequences are given back a moment after they have been disposed of. */
const spareSequences = 8;

const { library, file, threads, task, round } = JSON.parse(process.argv[2]!) as PeerRun;
const { getLlama } = (await import(pathToFileURL(library).href)) as Library;
const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: "error" });
const began = performance.now();
const model = await llama.loadModel({ modelPath: file });
const longest = Math.max(...task.prefillLengths, Math.max(...task.contexts) + task.tokens);
const context = await model.createContext({
  sequences: Math.max(...task.sequenceCounts) + spareSequences,
  contextSize: longest + 1,
  batchSize,
  threads: { ideal: threads, min: threads },
});
const loadSeconds = (performance.now() - began) / 1_000;

async function generate(prompt: number[], tokens: number): Promise<number[]> {
  const sequence = context.getSequence();
  const times: number[] = [];
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    times.push(performance.now());
    if (times.length === tokens) break;
  }
  sequence.dispose();
  return times;
}

const speeds = await runTask(generate, task, round);
const { anon, file: mapped, peak } = parseResident(readFileSync("/proc/self/status", "utf8"));
const figures: PeerFigures = {
  ...speeds,
  loadSeconds,
  anonymousBytes: anon,
  mappedBytes: mapped,
  peakBytes: peak,
};
process.stdout.write(`${JSON.stringify(figures)}\n`, () => process.exit(0));
