/** What stands in place of the API: clients' connections, and the answers of requests whose client is gone. */
import { toRelayError } from "../../common/errors.js";
import type { RequestId } from "../../common/ids.js";
import type {
  GenerationRequest,
  RequestEvent,
  RequestHandle,
  RequestState,
} from "../../coordinator/inference.js";
import type { Service } from "../../coordinator/service.js";
import { AnswerCheck, type Answers } from "./answers.js";
import type { Endpoint, Network } from "./network.js";
import type { Process } from "./process.js";
import type { World } from "./world.js";

export const apiAddress = "api";

export type ClientMessage =
  | { kind: "submit"; request: GenerationRequest; paceMs: number }
  | { kind: "look up"; id: RequestId; tenant: string };

export type FrontMessage =
  | { kind: "accepted" }
  | { kind: "event"; event: RequestEvent }
  | { kind: "state"; state: RequestState | null };

/** Of a request that ended without its client. */
export interface KeptAnswer {
  /** The code of the error that ended it; null when all choices are finished. */
  error: string | null;
  events: RequestEvent[];
}

export class Front {
  readonly #process: Process;
  readonly #service: Service;
  readonly #context: { world: World; answers: Answers };
  readonly #name: string;

  constructor(process: Process, service: Service, context: { world: World; answers: Answers }, name: string) {
    this.#process = process;
    this.#service = service;
    this.#context = context;
    this.#name = name;
    service.onOrphan((request, handle) => this.#adopt(request, handle));
  }

  open(network: Network): void {
    network.listen(this.#process, apiAddress, (endpoint) => {
      endpoint.onMessage = (message) => this.#asked(endpoint, message as ClientMessage);
    });
  }

  #asked(endpoint: Endpoint, message: ClientMessage): void {
    const send = (answer: FrontMessage) => endpoint.send(answer);
    const failed = (error: unknown) =>
      send({ kind: "event", event: { type: "error", error: toRelayError(error) } });
    if (message.kind === "look up") {
      this.#service
        .lookUp(message.id, message.tenant)
        .then((state) => send({ kind: "state", state }))
        .catch(failed);
      return;
    }
    const { request, paceMs } = message;
    this.#service
      .submit(request)
      .then((handle) => this.#accepted(endpoint, request, handle, paceMs))
      .catch(failed);
  }

  #accepted(endpoint: Endpoint, request: GenerationRequest, handle: RequestHandle, paceMs: number): void {
    const { answers, world } = this.#context;
    const attempt = answers.get(request.id)!;
    attempt.accepted ??= { coordinator: this.#name, atMs: world.loop.nowMs() };
    world.trace.note(this.#name, `${request.id}: accepted`);
    let hasEnded = false;
    const leave = () => {
      if (hasEnded) return;
      hasEnded = true;
      world.trace.note(this.#name, `${request.id}: its client has left`);
      // Nobody asks for it any more.
      attempt.ended = true;
      handle.cancel();
      attempt.leftAt = this.#name;
    };
    if (!endpoint.isOpen) {
      leave();
      return;
    }
    endpoint.onClose = leave;
    endpoint.send({ kind: "accepted" } satisfies FrontMessage);
    this.#follow(handle, request, paceMs, (event, isLast) => {
      if (hasEnded) return;
      if (event === null) {
        const message = `${request.id}: its events ended without an answer`;
        world.violate("a request ends exactly once", message);
        return;
      }
      hasEnded = isLast;
      if (isLast) attempt.ended = true;
      endpoint.send({ kind: "event", event } satisfies FrontMessage);
    });
  }

  #adopt(request: GenerationRequest, handle: RequestHandle): void {
    const { answers, world } = this.#context;
    world.count("orphans");
    const attempt = answers.get(request.id);
    const check = attempt === undefined ? null : new AnswerCheck(attempt.expected);
    const events: RequestEvent[] = [];
    this.#follow(handle, request, 0, (event, isLast) => {
      if (event === null) {
        const message = `${this.#name}, orphan ${request.id}: its events ended without an answer`;
        world.violate("a request ends exactly once", message);
        return;
      }
      const wrong = check?.take(event);
      if (wrong != null)
        world.violate(wrong.invariant, `${this.#name}, orphan ${request.id}: ${wrong.message}`);
      events.push(event);
      if (!isLast) return;
      if (attempt !== undefined) attempt.ended = true;
      const error = event.type === "error" ? event.error.code : null;
      if (error === "draining") {
        // The next process would have found it in the ledger, and answered it.
        world.violate("nothing accepted is lost", `${this.#name} ends the orphan ${request.id}: ${error}`);
      }
      this.#service.keepAnswer(request.id, JSON.stringify({ error, events } satisfies KeptAnswer));
    });
  }

  /**
   * Each event after a pause: of a reader that is slow, the next one is written when it has read the last one.
   * @param take Given null when they end too early.
   */
  #follow(
    handle: RequestHandle,
    request: GenerationRequest,
    paceMs: number,
    take: (event: RequestEvent | null, isLast: boolean) => void,
  ): void {
    const events = handle.events[Symbol.asyncIterator]();
    let unfinished = request.choices.length;
    const next = (): void => {
      void events.next().then(({ done, value: event }) => {
        if (done === true) {
          if (unfinished > 0) take(null, true);
          return;
        }
        if (event.type === "finish") unfinished--;
        if (event.type === "error") unfinished = 0;
        take(event, unfinished === 0);
        // What follows the last one is seen, too.
        if (paceMs > 0) this.#process.timers.after(paceMs, next);
        else next();
      });
    };
    next();
  }
}
