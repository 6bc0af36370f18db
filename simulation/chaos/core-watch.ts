/** Looks at everything that passes between a coordinator's core and the rest: what must hold holds after every event. */
import { type Epoch, formatEpoch, type RequestId } from "../../common/ids.js";
import type { GenerationRequest, RequestEvent } from "../../coordinator/inference.js";
import type { LedgerEntry } from "../../coordinator/queue/queue.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import type { Random } from "../random.js";
import { AnswerCheck, type Answers } from "./answers.js";
import type { Network } from "./network.js";
import type { Process } from "./process.js";
import type { SimRedis } from "./redis.js";
import { maxStandstillMs, type Scenario } from "./scenario.js";
import { StepWatch } from "./step-watch.js";
import type { World } from "./world.js";

/** Of the results, those that may come once more when their epoch is over, and how many of them at most. */
const keptResults = 0.1;
const maxOldResults = 16;
/** A timer that is due at the same time as an event may come behind it. */
const timerSlackMs = 1;

export interface CoordinatorContext {
  world: World;
  network: Network;
  redis: SimRedis;
  random: Random;
  scenario: Scenario;
  answers: Answers;
  /** Who gave out which epoch. */
  owners: Map<string, Process>;
}

export class CoreWatch {
  readonly #context: CoordinatorContext;
  readonly #process: Process;
  readonly #watches = new Map<number, StepWatch>();
  readonly #checks = new Map<RequestId, AnswerCheck>();
  readonly #ended = new Set<RequestId>();
  /** Of each request that the core has taken in, the choices that have not ended. */
  readonly #open = new Map<RequestId, number>();
  /** Some of the last ones. */
  readonly oldResults: StepResult__Output[] = [];
  /** Events so far. */
  emitted = 0;

  constructor(context: CoordinatorContext, process: Process) {
    this.#context = context;
    this.#process = process;
  }

  planMade(pipeline: number, epoch: Epoch): void {
    const { world, scenario } = this.#context;
    this.#watches.set(pipeline, new StepWatch(world, epoch, scenario.prefixLength));
  }

  /** A plan of this epoch is given out. */
  requireOwner(epoch: Epoch): void {
    const { owners, world } = this.#context;
    const owner = owners.get(formatEpoch(epoch));
    owners.set(formatEpoch(epoch), this.#process);
    // One that is dead, and that neither Redis nor a worker remembers, is nobody's leader.
    if (owner === undefined || owner === this.#process || !owner.alive) return;
    world.violate(
      "one owner per epoch",
      `${this.#process.name} gives out epoch ${formatEpoch(epoch)}, as ${owner.name} does`,
    );
  }

  step(header: StepHeader): void {
    const { world } = this.#context;
    this.#watches.get(header.pipeline!)?.sent(header);
    world.count("steps");
    world.count("copies", header.copies?.length ?? 0);
    if (header.slice != null) world.count("slices");
    for (const { draftRows = 0 } of header.sequences ?? []) if (draftRows > 0) world.count("drafts");
  }

  result(result: StepResult__Output): void {
    this.#watches.get(result.pipeline)?.finished(result.step);
    if (this.#context.random.chance(keptResults)) {
      this.oldResults.push(result);
      if (this.oldResults.length > maxOldResults) this.oldResults.shift();
    }
    for (const { drawn } of result.sequences) {
      if (drawn.length > 1) this.#context.world.count("guessed tokens", drawn.length - 1);
    }
  }

  event(id: RequestId, event: RequestEvent): void {
    const { world, answers } = this.#context;
    this.emitted++;
    const attempt = answers.get(id);
    if (attempt === undefined) return;
    let check = this.#checks.get(id);
    if (check === undefined) {
      check = new AnswerCheck(attempt.expected);
      this.#checks.set(id, check);
    }
    if (event.type === "finish") this.#open.set(id, (this.#open.get(id) ?? 1) - 1);
    if (event.type === "finish" || event.type === "error") {
      const code = event.type === "error" ? ` ${event.error.code}` : "";
      world.trace.note(this.#process.name, `${id}: ${event.type}${code}`);
    }
    if (attempt.leftAt === this.#process.name) {
      world.violate("nobody computes for those who left", `${this.#process.name}: ${event.type} of ${id}`);
    }
    this.#requireInTime(attempt.request, event);
    const wrong = check.take(event);
    if (wrong !== null) world.violate(wrong.invariant, `${this.#process.name}, ${id}: ${wrong.message}`);
  }

  /** Its deadline ends a request, unless this process stood still then. */
  #requireInTime({ id, deadlineMs }: GenerationRequest, event: RequestEvent): void {
    const { world, scenario } = this.#context;
    if (deadlineMs === undefined || event.type === "error") return;
    const lateMs = this.#process.timers.timeOfDayMs() - deadlineMs;
    const allowedMs = scenario.faults.includes("standstill") ? maxStandstillMs : timerSlackMs;
    if (lateMs <= allowedMs) return;
    world.violate(
      "a deadline is kept",
      `${this.#process.name}: ${event.type} of ${id} is ${Math.round(lateMs)} ms late`,
    );
  }

  admitted(id: RequestId, choices: number): void {
    const { world, answers, scenario } = this.#context;
    if (answers.get(id) === undefined) return;
    this.#open.set(id, choices);
    const open = [...this.#open.values()].reduce((sum, count) => sum + count, 0);
    if (open <= scenario.queueLimit) return;
    world.violate(
      "the queue limit holds",
      `${this.#process.name}: ${open} sequences of ${scenario.queueLimit}`,
    );
  }

  end(id: RequestId): void {
    const { world, answers } = this.#context;
    const attempt = answers.get(id);
    if (attempt === undefined) return;
    attempt.ended = true;
    this.#open.delete(id);
    if (this.#ended.has(id))
      world.violate("a request ends exactly once", `${this.#process.name}: ${id} ended twice`);
    this.#ended.add(id);
  }

  /** What a coordinator that is dead had accepted and not ended stands in the ledger, or still in the queue. */
  requireNothingLost(left: readonly LedgerEntry[], sinceMs: number): void {
    const { answers, redis, world } = this.#context;
    const there = new Set(left.map(({ request }) => request.id));
    for (const { request, accepted, ended } of answers.attempts()) {
      // By one that lives beside this one, while this one was reading.
      if (accepted !== null && accepted.atMs >= sinceMs) continue;
      if (accepted === null || ended || there.has(request.id)) continue;
      // It was ended then; a reader that is slow may not have come so far as to see it.
      if ((request.deadlineMs ?? Number.POSITIVE_INFINITY) <= this.#process.timers.timeOfDayMs()) continue;
      // Redis and the coordinator together may lose what is young; one of them alone must not.
      if (redis.tailLostAtMs >= accepted.atMs) continue;
      if (redis.get(`sim:job:${request.id}`) !== undefined) continue;
      world.violate("nothing accepted is lost", `${this.#process.name} does not find ${request.id}`);
    }
  }
}
