/**
 * The sending side of a link: serves the one stream on which the next stage (the coordinator, behind
 * the last stage) receives this stage's frames of one epoch.
 *
 * States: `waiting` for the receiver; `open`; `broken`, the receiver left after frames were sent to it,
 * so the epoch cannot go on over this link and frames are discarded until the coordinator has decided;
 * `closed` by us.
 */
import type { ServerDuplexStream } from "@grpc/grpc-js";
import { RelayError } from "../../common/errors.js";
import { toServiceError } from "../../common/grpc.js";
import { type Epoch, formatEpoch } from "../../common/ids.js";
import { linkCredits } from "../../common/limits.js";
import type { LinkFrame } from "../generated/glm/relay/internal/v1/LinkFrame.js";
import type { LinkRequest__Output } from "../generated/glm/relay/internal/v1/LinkRequest.js";
import { SendCredits } from "./credits.js";

export type LinkCall = ServerDuplexStream<LinkRequest__Output, LinkFrame>;

interface QueuedFrame {
  frame: LinkFrame;
  onSent: (() => void) | undefined;
}

/** Frames that wait for a credit or for the receiver to come. */
const maxQueuedFrames = linkCredits;

interface Receiver {
  call: LinkCall;
  credits: SendCredits;
}

export class Downstream {
  readonly #epoch: Epoch;
  #state: "waiting" | "open" | "broken" | "closed" = "waiting";
  #receiver: Receiver | null = null;
  #sentAny = false;
  #queue: QueuedFrame[] = [];
  #resumeSender: (() => void) | null = null;

  constructor(epoch: Epoch) {
    this.#epoch = epoch;
  }

  get state(): "waiting" | "open" | "broken" | "closed" {
    return this.#state;
  }

  /** Frames that the receiver would take now; 0 without one. */
  get credits(): number {
    return this.#receiver?.credits.available ?? 0;
  }

  /** Takes the receiver's stream, whose Hello was found good, while the state is `waiting`. */
  attach(call: LinkCall, credits: number): void {
    const receiver = { call, credits: new SendCredits(credits) };
    this.#receiver = receiver;
    this.#state = "open";
    const left = () => this.#left(receiver);
    call.on("cancelled", left);
    call.on("end", left);
    call.on("data", (request: LinkRequest__Output) => this.#onRequest(receiver, request));
    call.write({ opened: { epoch: this.#epoch } });
    this.#flush();
  }

  /**
   * Sends a frame when the receiver has a credit for it. `write` returning false is not waited for:
   * credits bound what gRPC holds.
   * @param onSent called when the transport has taken it; never for a frame that is discarded.
   * @returns resolves when the next frame may be given: at once, unless the queue is full.
   */
  send(frame: LinkFrame, onSent?: () => void): Promise<void> {
    if (this.#state === "broken" || this.#state === "closed") return Promise.resolve();
    this.#queue.push({ frame, onSent });
    this.#flush();
    if (this.#queue.length < maxQueuedFrames) return Promise.resolve();
    return new Promise((resolve) => {
      this.#resumeSender = resolve;
    });
  }

  /** Ends the receiver's stream with a reason once what was written has left; frames are discarded from now on. */
  close(reason: RelayError): void {
    this.#discard("closed");
    this.#receiver?.call.emit("error", toServiceError(reason));
    this.#receiver = null;
  }

  #onRequest(receiver: Receiver, request: LinkRequest__Output): void {
    if (this.#receiver !== receiver) return;
    try {
      if (request.message !== "credit") {
        throw new RelayError("corrupt_message", "a link's stream carries one hello and then only credits");
      }
      receiver.credits.give(request.credit ?? 0);
    } catch (error) {
      if (!(error instanceof RelayError)) throw error;
      receiver.call.emit("error", toServiceError(error));
      this.#left(receiver);
      return;
    }
    this.#flush();
  }

  /** The receiver may come again only if it has missed nothing. */
  #left(receiver: Receiver): void {
    if (this.#receiver !== receiver) return;
    this.#receiver = null;
    if (this.#sentAny) this.#discard("broken");
    else this.#state = "waiting";
    // Answers a half-closed stream; without effect on one that is gone.
    receiver.call.end();
  }

  #flush(): void {
    const receiver = this.#receiver;
    while (receiver !== null && this.#queue.length > 0 && receiver.credits.take()) {
      this.#sentAny = true;
      const { frame, onSent } = this.#queue.shift()!;
      receiver.call.write(frame, (error?: Error | null) => {
        if (error == null) onSent?.();
      });
    }
    if (this.#queue.length < maxQueuedFrames) this.#resume();
  }

  #discard(state: "broken" | "closed"): void {
    this.#state = state;
    this.#queue = [];
    this.#resume();
  }

  #resume(): void {
    this.#resumeSender?.();
    this.#resumeSender = null;
  }
}

/** Why a link of an epoch ends without a fault. */
export const epochOver = (epoch: Epoch, stage: number): RelayError =>
  new RelayError("stale_epoch", `epoch ${formatEpoch(epoch)} is over at stage ${stage}`);
