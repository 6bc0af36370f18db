/**
 * The two ends of a link over a simulated connection. The sending end is the product's own; the receiving one is
 * that of proto/link/upstream.ts with a simulated connection in place of a gRPC stream.
 */
import { type RelayError, RelayError as RelayFault } from "../../common/errors.js";
import { Backoff, type CallStatus, fromStatus, invitesRetry } from "../../common/grpc.js";
import { compareEpochs, type Epoch, formatEpoch } from "../../common/ids.js";
import { linkCredits } from "../../common/limits.js";
import { protocolVersion } from "../../common/package.js";
import type { Hello__Output } from "../../proto/generated/glm/relay/internal/v1/Hello.js";
import { ReceiveCredits } from "../../proto/link/credits.js";
import type { LinkCall } from "../../proto/link/downstream.js";
import { judgeHello, type ServedPlan } from "../../proto/link/hello.js";
import { connectionLost, type Endpoint, type Network } from "./network.js";
import type { Process } from "./process.js";

const retryMs = { first: 20, last: 200 };

/** What a served stream is to proto/link/downstream.ts, over a simulated connection. */
function callOf(endpoint: Endpoint): LinkCall {
  const call = {
    on(event: string, listener: (value?: unknown) => void) {
      if (event === "data") endpoint.onMessage = listener;
      if (event === "cancelled") endpoint.onClose = listener;
      return call;
    },
    write(frame: unknown, done?: () => void) {
      endpoint.send(frame);
      done?.();
      return true;
    },
    emit: (_event: string, status: unknown) => endpoint.close(status),
    end: () => endpoint.close(connectionLost),
  };
  return call as unknown as LinkCall;
}

/** Serves links as acceptLink does. */
export function serveLink(
  endpoint: Endpoint,
  served: (hello: Hello__Output) => { plan: ServedPlan | null; newest: Epoch },
): void {
  endpoint.onMessage = (message) => {
    const { hello } = message as { hello: Hello__Output };
    const { plan, newest } = served(hello);
    const refusal = judgeHello(hello, plan, newest);
    if (refusal !== null) endpoint.close(refusal);
    else plan!.downstream.attach(callOf(endpoint), hello.credits);
  };
}

export interface ReceiverOptions<T> {
  predecessor: string;
  epoch: Epoch;
  pipeline: number;
  stage: number;
  onOpen(): void;
  /** In order. */
  onFrame(frame: T): void;
  onLost(error: RelayError): void;
}

/** What a frame must say of its place. */
interface Placed {
  epoch: Epoch;
  pipeline: number;
  step: number;
}

export class Receiver<T> {
  readonly #process: Process;
  readonly #network: Network;
  readonly #options: ReceiverOptions<T>;
  readonly #placeOf: (frame: T) => Placed;
  readonly #credits = new ReceiveCredits(linkCredits);
  readonly #backoff = new Backoff(retryMs.first, retryMs.last);
  #state: "dialling" | "open" | "ended" = "dialling";
  #endpoint: Endpoint | null = null;
  #lastStep = 0;

  constructor(
    process: Process,
    network: Network,
    options: ReceiverOptions<T>,
    placeOf: (frame: T) => Placed,
  ) {
    this.#process = process;
    this.#network = network;
    this.#options = options;
    this.#placeOf = placeOf;
  }

  dial(): void {
    if (this.#state !== "dialling") return;
    const { predecessor, epoch, pipeline, stage } = this.#options;
    const endpoint = this.#network.dial(this.#process, predecessor);
    this.#endpoint = endpoint;
    endpoint.onMessage = (message) => this.#receive(message as { opened?: unknown } & T);
    endpoint.onClose = (reason) => this.#closed(reason as CallStatus);
    endpoint.send({ hello: { protocolVersion, epoch, pipeline, fromStage: stage, credits: linkCredits } });
  }

  /** A frame has been worked off. */
  consumed(): void {
    const credit = this.#credits.consumed();
    if (credit > 0 && this.#state === "open") this.#endpoint?.send({ message: "credit", credit });
  }

  close(): void {
    if (this.#state === "ended") return;
    this.#state = "ended";
    this.#endpoint?.close(connectionLost);
  }

  #closed(status: CallStatus): void {
    if (this.#state === "ended") return;
    if (this.#state === "dialling" && invitesRetry(status)) {
      this.#process.timers.after(this.#backoff.next(), () => this.dial());
      return;
    }
    this.#lose(fromStatus(status, "worker_lost"));
  }

  #receive(frame: { opened?: unknown } & T): void {
    if (this.#state === "ended") return;
    if (this.#state === "dialling") {
      this.#state = "open";
      this.#options.onOpen();
      return;
    }
    try {
      this.#credits.arrived();
      const { epoch, pipeline, step } = this.#placeOf(frame);
      const order = compareEpochs(epoch, this.#options.epoch);
      if (order < 0) {
        this.consumed();
        return;
      }
      if (order > 0 || pipeline !== this.#options.pipeline || step !== this.#lastStep + 1) {
        const message = `step ${step} of epoch ${formatEpoch(epoch)} in pipeline ${pipeline} follows ${this.#lastStep}`;
        throw new RelayFault("corrupt_message", message);
      }
      this.#lastStep = step;
    } catch (error) {
      this.#lose(error as RelayError);
      return;
    }
    this.#options.onFrame(frame);
  }

  #lose(error: RelayError): void {
    this.#state = "ended";
    this.#endpoint?.close(connectionLost);
    this.#options.onLost(error);
  }
}
