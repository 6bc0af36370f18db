/**
 * The worker's stream to the coordinator: registers, sends heartbeats, obeys. When the stream breaks
 * the worker registers again, for ever, unless it is refused.
 *
 * States of a session: `dialling` until Welcome; `joined`; then `ended`, and a new session follows after
 * a delay. The whole is `closed` by a refusal or by us.
 */
import type { ChannelCredentials, ClientDuplexStream, StatusObject } from "@grpc/grpc-js";
import { Backoff, controlChannelOptions, fromStatus, pause } from "../../common/grpc.js";
import { heartbeatMs } from "../../common/limits.js";
import type { Logger } from "../../common/log.js";
import { channelCredentials, type WorkerTrust } from "../../common/tls.js";
import type { Assign__Output } from "../../proto/generated/glm/relay/internal/v1/Assign.js";
import type { CoordinatorMessage__Output } from "../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { Heartbeat } from "../../proto/generated/glm/relay/internal/v1/Heartbeat.js";
import type { Register } from "../../proto/generated/glm/relay/internal/v1/Register.js";
import type { Release__Output } from "../../proto/generated/glm/relay/internal/v1/Release.js";
import type { StageState } from "../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { WorkerMessage } from "../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import { internalProto } from "../../proto/load.js";

const firstRetryMs = 100;
const lastRetryMs = 2_000;
/** A coordinator that accepts the connection and then says nothing; far above any stall of its event loop. */
const welcomeTimeoutMs = 10_000;
/** Heartbeats are skipped while so many messages wait to be sent: the coordinator does not read. */
const maxWaitingMessages = 16;
/** How long a goodbye may take to leave this process. */
const leaveTimeoutMs = 250;

export interface ControlOptions extends WorkerTrust {
  /** host:port */
  coordinator: string;
  log: Logger;
  register(): Register;
  heartbeat(): Heartbeat;
  /** False when the leader's term is older than one obeyed before: the session ends. */
  onWelcome(term: number): boolean;
  onAssign(assign: Assign__Output): void;
  onRelease(release: Release__Output): void;
  /** Coming back would not help. Nothing is dialled any more. */
  onRefused(code: string, message: string): void;
}

type JoinStream = ClientDuplexStream<WorkerMessage, CoordinatorMessage__Output>;

export class Control {
  readonly #options: ControlOptions;
  readonly #credentials: ChannelCredentials;
  readonly #closing = new AbortController();
  readonly #backoff = new Backoff(firstRetryMs, lastRetryMs);
  /** The stream of a session that was welcomed. */
  #joined: JoinStream | null = null;
  #current: JoinStream | null = null;
  #lastFailure = "";

  /** @throws RelayError invalid_configuration for an address that may not be dialled. */
  constructor(options: ControlOptions) {
    this.#options = options;
    this.#credentials = channelCredentials(options.coordinator, options);
  }

  get joined(): boolean {
    return this.#joined !== null;
  }

  /** Holds sessions one after the other; resolves when closed. */
  async run(): Promise<void> {
    const { signal } = this.#closing;
    while (!signal.aborted) {
      const failure = await this.#session();
      if (signal.aborted) return;
      this.#logFailure(failure);
      await pause(this.#backoff.next(), signal);
    }
  }

  /** Lost when there is no session: the next one starts without a plan. */
  report(stageState: StageState): void {
    this.#joined?.write({ stageState });
  }

  /** Says goodbye and ends the session; no other follows. */
  async leave(reason: string): Promise<void> {
    const stream = this.#joined;
    if (stream !== null) {
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leaveTimeoutMs);
        stream.write({ leave: { reason } }, () => {
          clearTimeout(timer);
          resolve();
        });
      });
      stream.end();
    }
    this.#close();
  }

  #close(): void {
    this.#closing.abort();
    const stream = this.#current;
    // A stream that was ended in order gets the time to deliver its last message.
    if (stream !== null && !stream.writableEnded) stream.cancel();
    else if (stream !== null) setTimeout(() => stream.cancel(), leaveTimeoutMs).unref();
  }

  /** One stream from its first message to its last; resolves with why it ended. */
  #session(): Promise<string> {
    const { coordinator, register } = this.#options;
    const client = new internalProto.Membership(coordinator, this.#credentials, controlChannelOptions);
    const stream = client.Join();
    this.#current = stream;
    return new Promise((resolve) => {
      const timer = setTimeout(() => stream.cancel(), welcomeTimeoutMs);
      let heartbeats: NodeJS.Timeout | undefined;
      stream.on("data", (message: CoordinatorMessage__Output) => {
        if (this.#closing.signal.aborted) return;
        if (message.welcome != null && this.#joined === null) {
          clearTimeout(timer);
          if (!this.#options.onWelcome(message.welcome.term)) {
            stream.cancel();
            return;
          }
          this.#welcomed(stream);
          heartbeats = setInterval(() => this.#beat(stream), message.welcome.heartbeatMs || heartbeatMs);
        } else {
          this.#obey(message);
        }
      });
      // Every way in which the stream can end comes as a status; an error only repeats it.
      stream.on("error", () => undefined);
      stream.on("status", (status: StatusObject) => {
        clearTimeout(timer);
        clearInterval(heartbeats);
        this.#joined = null;
        this.#current = null;
        client.close();
        resolve(fromStatus(status, "internal").message);
      });
      stream.write({ register: register() });
    });
  }

  #welcomed(stream: JoinStream): void {
    this.#joined = stream;
    this.#backoff.reset();
    this.#lastFailure = "";
    this.#options.log.info({ coordinator: this.#options.coordinator }, "joined");
  }

  #obey(message: CoordinatorMessage__Output): void {
    if (message.refused != null) {
      this.#close();
      this.#options.onRefused(message.refused.code, message.refused.message);
      return;
    }
    // Before Welcome nobody leads: the term of the sender is not known.
    if (this.#joined === null) return;
    if (message.assign != null) this.#options.onAssign(message.assign);
    else if (message.release != null) this.#options.onRelease(message.release);
  }

  #beat(stream: JoinStream): void {
    if (stream.writableLength >= maxWaitingMessages) return;
    stream.write({ heartbeat: this.#options.heartbeat() });
  }

  /** Once per kind of failure: a coordinator may be away for hours. */
  #logFailure(failure: string): void {
    if (failure === this.#lastFailure) return;
    this.#lastFailure = failure;
    const { coordinator, log } = this.#options;
    log.warn({ coordinator, failure }, "no session with the coordinator; trying again");
  }
}
