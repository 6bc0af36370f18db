/**
 * The receiving side of a link: dials the predecessor (the coordinator, for stage 0), keeps the one
 * stream of an epoch and hands out its frames in order.
 *
 * States: `dialling`, again and again while the predecessor is absent or does not know the epoch yet;
 * `open`; `ended`, by us, by the predecessor or by a message that could not be right.
 */
import type { ClientDuplexStream, StatusObject } from "@grpc/grpc-js";
import { RelayError } from "../../common/errors.js";
import {
  Backoff,
  type CallStatus,
  fromStatus,
  invitesRetry,
  linkChannelOptions,
  pause,
} from "../../common/grpc.js";
import { compareEpochs, type Epoch, formatEpoch } from "../../common/ids.js";
import { protocolVersion } from "../../common/package.js";
import { channelCredentials, type WorkerTrust } from "../../common/tls.js";
import type { LinkFrame__Output } from "../generated/glm/relay/internal/v1/LinkFrame.js";
import type { LinkRequest } from "../generated/glm/relay/internal/v1/LinkRequest.js";
import { internalProto } from "../load.js";
import { ReceiveCredits } from "./credits.js";
import type { FrameReader } from "./frames.js";

const firstRetryMs = 20;
const lastRetryMs = 200;
/** A predecessor that accepts the connection and then says nothing; far above any stall of its event loop. */
const openTimeoutMs = 10_000;

export interface UpstreamOptions extends WorkerTrust {
  /** host:port */
  predecessor: string;
  epoch: Epoch;
  pipeline: number;
  /** The stage that dials. */
  stage: number;
  /** Frames the predecessor may send unasked: the bound of the queue here. */
  credits: number;
  /** A frame of an older epoch was dropped. */
  onStale(): void;
  /** Bytes of activations. */
  onReceived(bytes: number): void;
  /** The stream ended though nobody here closed it. Called once. */
  onLost(error: RelayError): void;
}

type LinkStream = ClientDuplexStream<LinkRequest, LinkFrame__Output>;

export class Upstream<T> {
  readonly #options: UpstreamOptions;
  readonly #reader: FrameReader<T>;
  readonly #credits: ReceiveCredits;
  readonly #closing = new AbortController();
  #state: "dialling" | "open" | "ended" = "dialling";
  #stream: LinkStream | null = null;
  #queue: T[] = [];
  #lastStep = 0;
  #waiting: ((content: T | null) => void) | null = null;

  /** @param reader knows the kind of frame that this link carries. */
  constructor(options: UpstreamOptions, reader: FrameReader<T>) {
    this.#options = options;
    this.#reader = reader;
    this.#credits = new ReceiveCredits(options.credits);
  }

  /**
   * Dials until the predecessor has opened the epoch.
   * @returns false when it has ended meanwhile.
   * @throws RelayError of a final refusal, worker_lost for an answer that retrying does not mend.
   */
  async open(): Promise<boolean> {
    const backoff = new Backoff(firstRetryMs, lastRetryMs);
    while (this.#state === "dialling") {
      const failure = await this.#dial();
      if (failure === null || this.#ended()) break;
      if (!invitesRetry(failure)) throw this.#named(fromStatus(failure, "worker_lost"));
      await pause(backoff.next(), this.#closing.signal);
    }
    return this.#isOpen();
  }

  /** The next frame's content; null once the link has ended. One caller at a time. */
  next(): Promise<T | null> {
    if (this.#state === "ended") return Promise.resolve(null);
    const content = this.#queue.shift();
    if (content !== undefined) return Promise.resolve(content);
    return new Promise((resolve) => {
      this.#waiting = resolve;
    });
  }

  /** Notes that a frame has been worked off, so that its credit can go back. */
  consumed(): void {
    const credit = this.#credits.consumed();
    if (credit > 0 && this.#state === "open") this.#stream?.write({ credit });
  }

  /** Ends quietly; frames that were not handed out are dropped. */
  close(): void {
    if (!this.#ended()) this.#end();
  }

  /** One attempt: null once the predecessor has answered, else how the stream ended before. */
  #dial(): Promise<CallStatus | null> {
    const { predecessor, epoch, pipeline, stage, credits } = this.#options;
    const credentials = channelCredentials(predecessor, this.#options);
    const client = new internalProto.Link(predecessor, credentials, linkChannelOptions);
    const stream = client.Connect();
    this.#stream = stream;
    return new Promise((resolve) => {
      const timer = setTimeout(() => stream.cancel(), openTimeoutMs);
      stream.on("data", (frame: LinkFrame__Output) => {
        clearTimeout(timer);
        if (this.#state === "open") this.#receive(frame);
        else if (this.#state === "dialling") this.#opened(frame);
        resolve(null);
      });
      // Every way in which the stream can end comes as a status; an error only repeats it.
      stream.on("error", () => undefined);
      stream.on("status", (status: StatusObject) => {
        clearTimeout(timer);
        client.close();
        resolve(status);
        if (this.#stream === stream) this.#lose(fromStatus(status, "worker_lost"));
      });
      stream.write({ hello: { protocolVersion, epoch, pipeline, fromStage: stage, credits } });
    });
  }

  #opened(frame: LinkFrame__Output): void {
    this.#state = "open";
    const epoch = frame.opened?.epoch;
    if (epoch != null && compareEpochs(epoch, this.#options.epoch) === 0) return;
    this.#lose(new RelayError("corrupt_message", `expected opened with this epoch, got ${frame.message}`));
  }

  #receive(frame: LinkFrame__Output): void {
    try {
      this.#credits.arrived();
      const content = this.#accept(frame);
      if (content === null) {
        this.#options.onStale();
        this.consumed();
      } else if (this.#waiting === null) {
        this.#queue.push(content);
      } else {
        this.#waiting(content);
        this.#waiting = null;
      }
    } catch (error) {
      if (!(error instanceof RelayError)) throw error;
      this.#lose(error);
    }
  }

  /** Null for a frame of an older epoch. A checksum is taken here, while the engine is at an earlier step. */
  #accept(frame: LinkFrame__Output): T | null {
    const { epoch, pipeline, step, bytes, content } = this.#reader.read(frame);
    this.#options.onReceived(bytes);
    const order = compareEpochs(epoch, this.#options.epoch);
    if (order < 0) return null;
    if (order > 0 || pipeline !== this.#options.pipeline) {
      throw new RelayError(
        "corrupt_message",
        `step of epoch ${formatEpoch(epoch)} in pipeline ${pipeline} on a link of another`,
      );
    }
    if (step !== this.#lastStep + 1) {
      throw new RelayError("corrupt_message", `step ${step} follows step ${this.#lastStep}`);
    }
    this.#reader.verify(content);
    this.#lastStep = step;
    return content;
  }

  #lose(error: RelayError): void {
    if (this.#state !== "open") return;
    this.#end();
    this.#options.onLost(this.#named(error));
  }

  #end(): void {
    this.#state = "ended";
    this.#queue = [];
    this.#closing.abort();
    // Its status closes the client.
    this.#stream?.cancel();
    this.#waiting?.(null);
    this.#waiting = null;
  }

  #isOpen(): boolean {
    return this.#state === "open";
  }

  #ended(): boolean {
    return this.#state === "ended";
  }

  #named(error: RelayError): RelayError {
    const { stage, predecessor, epoch } = this.#options;
    const from = stage === 0 ? "the coordinator" : `stage ${stage - 1}`;
    return new RelayError(
      error.code,
      `link of epoch ${formatEpoch(epoch)} from ${from} at ${predecessor}: ${error.message}`,
      { cause: error },
    );
  }
}
