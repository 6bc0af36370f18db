/**
 * What a step costs the pure core: CPU time of forming it (scheduler), writing its header and checking its
 * result (pipeline). Nothing is sent and no text is made. CPU time, not the clock: the figures hold on a busy
 * machine too.
 */
import type { Command } from "commander";
import { pipelineId, type SequenceId, sequenceId } from "../common/ids.js";
import { maxStepRows } from "../common/limits.js";
import {
  Pipeline,
  type RowRequests,
  type StepRequests,
  sequenceSampling,
} from "../coordinator/pipeline/pipeline.js";
import { blocksFor } from "../coordinator/scheduler/block-pool.js";
import { Scheduler } from "../coordinator/scheduler/scheduler.js";
import { TimingModel } from "../coordinator/scheduler/timing/timing-model.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../proto/generated/glm/relay/internal/v1/StepResult.js";
import { printJson } from "./options.js";
import { Progress } from "./progress.js";
import { percentile, printMarkdown, printTable, type Table } from "./report.js";

/** What is promised (DESIGN.md): of one step with so many running sequences. */
export const target = { sequences: 256, stepUs: 200 };

/** So that prompts go in whole chunks: what is measured is the cost of looking at times, too. */
const itlTargetMs = 60_000;
const measured = { stageUs: [100], roundtripUs: 500 };

const epoch = { term: 1, plan: 1 };
const promptTokens = 1;
const prefillChunk = 256;
/** Rounds of a case, of which the median is shown, each on new sequences; the first ones only warm up. */
const rounds = 9;
const warmUpRounds = 2;
const stepsPerRound = 512;
/** No sequence ends while it is measured. */
const mostTokens = 2 * stepsPerRound;

export interface Case {
  /** Sequences that decode. */
  running: number;
  /** Each step also has a chunk of a new prompt. */
  prefill: boolean;
  waiting: number;
}

const cases: Case[] = [
  ...[1, 16, 64, 256, 1_024].map((running) => ({ running, prefill: false, waiting: 0 })),
  ...[1, 16, 64, 256].map((running) => ({ running, prefill: true, waiting: 0 })),
  { running: 256, prefill: false, waiting: 10_000 },
];

export interface CostFigures extends Case {
  rowsPerStep: number;
  stepUs: number;
}

interface Flags {
  json?: boolean;
  markdown?: boolean;
}

export function addSchedulerCostCommand(program: Command): void {
  program
    .command("scheduler-cost")
    .description("CPU time of the pure core per step: forming it, its header and its result.")
    .option("--json", "print JSON")
    .option("--markdown", "print for a document")
    .action(({ json, markdown }: Flags) => {
      const progress = new Progress("cases", cases.length);
      const figures = cases.map((each) => {
        const measured = measureStepCost(each);
        progress.add();
        return measured;
      });
      if (json === true) printJson({ name: "scheduler-cost", target, figures });
      else (markdown === true ? printMarkdown : printTable)(table(figures));
    });
}

export function measureStepCost(which: Case): CostFigures {
  const costs: number[] = [];
  let rows = 0;
  for (let round = -warmUpRounds; round < rounds; round++) {
    const bed = new TestBed(which);
    rows = 0;
    const before = process.cpuUsage();
    for (let step = 0; step < stepsPerRound; step++) rows += bed.step();
    const { user, system } = process.cpuUsage(before);
    if (round >= 0) costs.push((user + system) / stepsPerRound);
  }
  return { ...which, rowsPerStep: rows / stepsPerRound, stepUs: percentile(costs, 50) };
}

/**
 * One stage, so that all sequences travel in each step, as far as one holds them; its answers cost nothing to
 * speak of.
 */
class TestBed {
  readonly #scheduler: Scheduler;
  readonly #pipeline: Pipeline;
  readonly #which: Case;
  /** What the core says of a row, the same for all. */
  readonly #request: RowRequests = {
    requestId: "",
    context: null,
    sampling: sequenceSampling(
      {
        ...{ temperature: 0.8, topP: 0.95, topK: 0, minP: 0, topLogprobs: -1, promptLogprobs: false },
        ...{ maxTokens: mostTokens, minTokens: 0, ignoreEos: true },
        ...{ stop: [], stopTokenIds: [], includeStopInOutput: false },
      },
      1n,
    ),
    bannedTokens: [],
    scoreTargets: [],
  };
  readonly #requests: StepRequests = {
    rows: () => this.#request,
    decodes: () => this.#request,
    slice: () => {
      throw new Error("no context is read in slices here");
    },
  };
  readonly #answer: StepResult__Output = {
    epoch,
    pipeline: 0,
    step: 0,
    sequences: [],
    stageUs: measured.stageUs,
  };
  readonly #places: StepResult__Output["sequences"] = Array.from({ length: maxStepRows }, () => ({
    sequence: 0,
    drawn: [],
    drawnPosition: 0,
    scores: [],
  }));
  readonly #drawn = [
    {
      token: 7,
      logprob: 0,
      rank: 1,
      topTokens: Buffer.alloc(0),
      topLogprobs: Buffer.alloc(0),
      finite: true,
    },
  ];
  #sent: StepHeader | null = null;
  #lastSequence = 0;
  /** The sequence whose prompt travels now. */
  #prefilling: SequenceId | null = null;

  constructor(which: Case) {
    this.#which = which;
    const sequenceBlocks = blocksFor(promptTokens + mostTokens - 1);
    const limits = {
      // What waits does not fit beside what runs.
      blockCount: which.running * sequenceBlocks + (which.prefill ? prefillChunk : 0),
      stageCount: 1,
      microBatches: null,
      maxStepRows,
      prefixLength: 0,
      prefillChunk,
      firstExpectedReply: mostTokens,
    };
    this.#scheduler = new Scheduler(limits, new TimingModel({ stageCount: 1, itlTargetMs }));
    const keep = (header: StepHeader) => {
      this.#sent = header;
    };
    this.#pipeline = new Pipeline(epoch, pipelineId(0), keep, 1);
    for (let i = 0; i < which.running; i++) this.#submit(promptTokens, mostTokens);
    // The first rows of all: a prompt of one token is decoded like any other.
    for (let left = which.running; left > 0; ) left -= this.#step();
    for (let i = 0; i < which.waiting; i++) this.#submit(promptTokens, mostTokens);
  }

  /** One step there and back. @returns Its rows. */
  step(): number {
    if (this.#which.prefill && this.#prefilling === null) this.#prefilling = this.#submit(prefillChunk, 1);
    return this.#step();
  }

  #step(): number {
    const step = this.#scheduler.next();
    if (step === null) throw new Error("nothing was scheduled");
    this.#pipeline.submit(step, this.#requests, 0);
    const header = this.#sent!;
    const outcomes = this.#pipeline.complete(this.#answerTo(header))!;
    this.#scheduler.complete(step.step, measured);
    for (const { sequence, drawn } of outcomes) {
      if (drawn.length === 0) continue;
      for (const { token } of drawn) this.#scheduler.append(sequence, token);
      if (sequence !== this.#prefilling) continue;
      this.#scheduler.remove(sequence);
      this.#prefilling = null;
    }
    return step.rows.reduce((sum, { tokens }) => sum + tokens.length, 0);
  }

  #answerTo(header: StepHeader): StepResult__Output {
    const answer = this.#answer;
    answer.step = Number(header.step);
    answer.sequences = this.#places.slice(0, header.sequences!.length);
    for (const [index, { sequence, sampling, validLength, rowCount }] of header.sequences!.entries()) {
      const place = answer.sequences[index]!;
      place.sequence = sequence!;
      place.drawn = sampling == null ? [] : this.#drawn;
      place.drawnPosition = sampling == null ? 0 : validLength! + rowCount!;
    }
    return answer;
  }

  /** Every prompt is new: none takes over what another has computed. */
  #submit(length: number, maxTokens: number): SequenceId {
    const id = sequenceId(++this.#lastSequence);
    const prompt = Int32Array.from({ length }, (_, i) => (i === 0 ? this.#lastSequence : i));
    this.#scheduler.submit(id, prompt, maxTokens);
    return id;
  }
}

function table(figures: readonly CostFigures[]): Table {
  return {
    title:
      `CPU time of the pure core per step: promised are ${target.stepUs} us ` +
      `with ${target.sequences} running sequences`,
    head: [
      "decoding",
      "waiting",
      "prompt chunk",
      "rows per step",
      "us per step",
      "us per sequence",
      "of promised",
    ],
    rows: figures.map(({ running, waiting, prefill, rowsPerStep, stepUs }) => [
      String(running),
      String(waiting),
      prefill ? String(prefillChunk) : "-",
      rowsPerStep.toFixed(0),
      stepUs.toFixed(1),
      (stepUs / Math.min(running + (prefill ? 1 : 0), rowsPerStep)).toFixed(3),
      running === target.sequences ? (stepUs / target.stepUs).toFixed(2) : "",
    ]),
  };
}
