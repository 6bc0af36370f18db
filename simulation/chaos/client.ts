/** A client: asks, follows, leaves, asks again. It is done when it has its answer, or nobody wants it any more. */
import { type RequestId, requestId } from "../../common/ids.js";
import type { GenerationRequest, RequestEvent } from "../../coordinator/inference.js";
import { AnswerCheck, type Answers } from "./answers.js";
import { apiAddress, type ClientMessage, type FrontMessage, type KeptAnswer } from "./front.js";
import type { Endpoint, Network } from "./network.js";
import { Process } from "./process.js";
import type { ClientPlan } from "./scenario.js";
import type { World } from "./world.js";

const retryMs = { least: 300, most: 1_500 };
const lookUpMs = 800;

/** What a client asks for by name must be allowed to fail. */
export interface ErrorRules {
  /** null when an error with this code may come now. */
  complaint(code: string, plan: ClientPlan, sinceMs: number): string | null;
}

export interface ClientContext {
  world: World;
  network: Network;
  answers: Answers;
  rules: ErrorRules;
}

export class SimClient {
  readonly name: string;
  readonly #context: ClientContext;
  readonly #plan: ClientPlan;
  readonly #process: Process;
  /** Called with every complete answer: a batch writes a line for each. */
  readonly #answered: () => void;
  #attempt = 0;
  #connection: Endpoint | null = null;
  #beganAtMs = 0;
  #done: string | null = null;

  constructor(context: ClientContext, name: string, plan: ClientPlan, answered: () => void = () => {}) {
    this.#context = context;
    this.name = name;
    this.#plan = plan;
    this.#answered = answered;
    this.#process = new Process(context.world, name);
    this.#process.timers.after(plan.beginsAtMs, () => {
      this.#beganAtMs = context.world.loop.nowMs();
      this.#ask();
      if (plan.leavesAfterMs !== null)
        this.#process.timers.after(plan.leavesAfterMs, () => this.#end("left"));
    });
  }

  /** How it ended; null while it has not. */
  get done(): string | null {
    return this.#done;
  }

  #end(how: string): void {
    if (this.#done !== null) return;
    this.#done = how;
    this.#context.world.count(`clients ${how}`);
    this.#connection?.close(null);
  }

  #later(run: () => void): void {
    // Spread by name and attempt, so that no two clients come in step.
    const spread = ((this.name.length * 131 + this.#attempt * 977) % 100) / 100;
    this.#process.timers.after(retryMs.least + spread * (retryMs.most - retryMs.least), () => {
      if (this.#done === null) run();
    });
  }

  #ask(): void {
    const { world, network, answers } = this.#context;
    const { deadlineMs, request: asked, paceMs } = this.#plan;
    const id = requestId(`${this.name}-${++this.#attempt}`);
    const request: GenerationRequest = { ...asked, id };
    if (deadlineMs !== null) {
      request.deadlineMs =
        this.#process.timers.timeOfDayMs() - (world.loop.nowMs() - this.#beganAtMs) + deadlineMs;
    }
    answers.add(this.name, request);
    const check = new AnswerCheck(answers.get(id)!.expected);
    const connection = network.dial(this.#process, apiAddress);
    this.#connection = connection;
    let accepted = false;
    connection.onMessage = (message) => {
      const answer = message as FrontMessage;
      if (answer.kind === "accepted") accepted = true;
      else if (answer.kind === "event") this.#took(id, check, answer.event);
    };
    connection.onClose = () => {
      if (this.#done !== null || check.ended) return;
      if (accepted && this.#plan.looksUp) this.#lookUp(id);
      else this.#later(() => this.#ask());
    };
    connection.send({ kind: "submit", request, paceMs } satisfies ClientMessage);
  }

  #took(id: RequestId, check: AnswerCheck, event: RequestEvent): void {
    const { world } = this.#context;
    const wrong = check.take(event);
    if (wrong !== null) world.violate(wrong.invariant, `${id} at its client: ${wrong.message}`);
    if (event.type === "error") this.#failed(event.error.code);
    else if (check.ended) {
      this.#answered();
      this.#end("answered");
    }
  }

  #failed(code: string): void {
    const { world, rules } = this.#context;
    world.count(`errors ${code}`);
    this.#connection?.close(null);
    const complaint = rules.complaint(code, this.#plan, this.#beganAtMs);
    if (complaint !== null) world.violate("only allowed errors", `${this.name}: ${code}, but ${complaint}`);
    const isFinal = code === "request_poisoned" && this.#plan.request.class === "interactive";
    if (code === "deadline_exceeded" || isFinal) this.#end(code);
    else this.#later(() => this.#ask());
  }

  /** Its coordinator is gone, perhaps: the next one may have finished the request. */
  #lookUp(id: RequestId): void {
    const { world, network, answers } = this.#context;
    const connection = network.dial(this.#process, apiAddress);
    this.#connection = connection;
    const again = () =>
      void this.#process.timers.after(lookUpMs, () => {
        if (this.#done === null) this.#lookUp(id);
      });
    connection.onClose = again;
    connection.onMessage = (message) => {
      connection.close(null);
      const answer = message as FrontMessage;
      if (answer.kind !== "state" || (answer.state !== null && answer.state.status !== "ended")) {
        again();
        return;
      }
      if (answer.state === null) {
        this.#later(() => this.#ask());
        return;
      }
      world.count("answers looked up");
      const kept = JSON.parse(answer.state.answer) as KeptAnswer;
      if (kept.error !== null) {
        this.#failed(kept.error);
        return;
      }
      const check = new AnswerCheck(answers.get(id)!.expected);
      for (const event of kept.events) {
        const wrong = check.take(event);
        if (wrong !== null) world.violate(wrong.invariant, `${id} as it was kept: ${wrong.message}`);
      }
      this.#answered();
      this.#end("answered");
    };
    connection.send({ kind: "look up", id, tenant: this.#plan.request.tenant } satisfies ClientMessage);
  }
}

/** Lines of a file, some at a time; each is asked for until it has its answer, and written down then. */
export class BatchClient {
  readonly #context: ClientContext;
  readonly #plans: readonly ClientPlan[];
  readonly #written: number[];
  #next = 0;

  constructor(context: ClientContext, plans: readonly ClientPlan[], atOnce: number) {
    this.#context = context;
    this.#plans = plans;
    this.#written = plans.map(() => 0);
    for (let count = 0; count < atOnce; count++) this.#take();
  }

  /** @returns Lines that have no answer yet. */
  get missing(): number {
    return this.#written.filter((count) => count === 0).length;
  }

  #take(): void {
    const line = this.#next++;
    const plan = this.#plans[line];
    if (plan === undefined) return;
    const client: SimClient = new SimClient(this.#context, `line-${line}`, plan, () => {
      if (++this.#written[line]! > 1) {
        this.#context.world.violate(
          "one line per batch id",
          `${client.name} has ${this.#written[line]} answers`,
        );
      }
      this.#take();
    });
  }
}
