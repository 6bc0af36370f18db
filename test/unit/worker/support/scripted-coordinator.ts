/** A coordinator whose every word the test speaks: real sockets, no opinion of its own. */
import { Server, type ServerDuplexStream, type ServiceError } from "@grpc/grpc-js";
import { serverOptions } from "../../../../common/grpc.js";
import { serverCredentials } from "../../../../common/tls.js";
import type { Assign } from "../../../../proto/generated/glm/relay/internal/v1/Assign.js";
import type { CoordinatorMessage } from "../../../../proto/generated/glm/relay/internal/v1/CoordinatorMessage.js";
import type { Hello__Output } from "../../../../proto/generated/glm/relay/internal/v1/Hello.js";
import type { LinkFrame } from "../../../../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { LinkRequest__Output } from "../../../../proto/generated/glm/relay/internal/v1/LinkRequest.js";
import type { Register__Output } from "../../../../proto/generated/glm/relay/internal/v1/Register.js";
import type { StageState__Output } from "../../../../proto/generated/glm/relay/internal/v1/StageState.js";
import type { WorkerMessage__Output } from "../../../../proto/generated/glm/relay/internal/v1/WorkerMessage.js";
import { internalProto } from "../../../../proto/load.js";
import { Inbox } from "./inbox.js";

/** One control stream of a worker. */
export class Session {
  readonly inbox = new Inbox<WorkerMessage__Output>("control stream");
  readonly ended: Promise<void>;
  readonly #stream: ServerDuplexStream<WorkerMessage__Output, CoordinatorMessage>;

  constructor(stream: ServerDuplexStream<WorkerMessage__Output, CoordinatorMessage>) {
    this.#stream = stream;
    stream.on("data", (message: WorkerMessage__Output) => this.inbox.put(message));
    this.ended = new Promise((resolve) => {
      stream.on("end", () => {
        stream.end();
        resolve();
      });
      stream.on("cancelled", () => resolve());
    });
  }

  async registered(): Promise<Register__Output> {
    return (await this.inbox.next((message) => message.register != null)).register!;
  }

  async state(phase: StageState__Output["phase"]): Promise<StageState__Output> {
    return (await this.inbox.next((message) => message.stageState?.phase === phase)).stageState!;
  }

  send(message: CoordinatorMessage): void {
    this.#stream.write(message);
  }

  welcome(term: number, heartbeatMs = 20): void {
    this.send({ welcome: { term, heartbeatMs, leaseMs: 2_000 } });
  }

  end(): void {
    this.#stream.end();
  }
}

/** A stream on which stage 0 receives. */
export class CoordinatorLink {
  readonly hello: Hello__Output;
  readonly credits = new Inbox<number>("credits");
  readonly ended: Promise<void>;
  readonly #stream: ServerDuplexStream<LinkRequest__Output, LinkFrame>;

  constructor(hello: Hello__Output, stream: ServerDuplexStream<LinkRequest__Output, LinkFrame>) {
    this.hello = hello;
    this.#stream = stream;
    stream.on("data", (request: LinkRequest__Output) => this.credits.put(request.credit ?? 0));
    this.ended = new Promise((resolve) => {
      stream.on("cancelled", () => resolve());
      stream.on("end", () => resolve());
    });
  }

  open(): void {
    this.send({ opened: { epoch: this.hello.epoch } });
  }

  send(frame: LinkFrame): void {
    this.#stream.write(frame);
  }

  end(): void {
    this.#stream.end();
  }

  refuse(error: ServiceError): void {
    this.#stream.emit("error", error);
  }
}

export class ScriptedCoordinator {
  readonly sessions = new Inbox<Session>("sessions");
  readonly links = new Inbox<CoordinatorLink>("links");
  address = "";
  readonly #server = new Server(serverOptions);

  static async start(port = 0): Promise<ScriptedCoordinator> {
    const coordinator = new ScriptedCoordinator();
    await coordinator.#listen(port);
    return coordinator;
  }

  get port(): number {
    return Number(this.address.split(":")[1]);
  }

  stop(): void {
    this.#server.forceShutdown();
  }

  /** Waits for a worker's stream and welcomes it. */
  async welcomed(term: number, heartbeatMs?: number): Promise<Session> {
    const session = await this.sessions.next();
    await session.registered();
    session.welcome(term, heartbeatMs);
    return session;
  }

  #listen(port: number): Promise<void> {
    this.#server.addService(internalProto.Membership.service, {
      Join: (stream: ServerDuplexStream<WorkerMessage__Output, CoordinatorMessage>) =>
        this.sessions.put(new Session(stream)),
    });
    this.#server.addService(internalProto.Link.service, {
      Connect: (stream: ServerDuplexStream<LinkRequest__Output, LinkFrame>) => {
        stream.once("data", (first: LinkRequest__Output) => {
          if (first.hello != null) this.links.put(new CoordinatorLink(first.hello, stream));
        });
      },
    });
    const address = `127.0.0.1:${port}`;
    return new Promise((resolve, reject) => {
      this.#server.bindAsync(address, serverCredentials(address), (error, bound) => {
        if (error !== null) reject(error);
        this.address = `127.0.0.1:${bound}`;
        resolve();
      });
    });
  }
}

/** A plan of the fake engine's whole model on one worker; a test changes what it is about. */
export function assignment(coordinator: ScriptedCoordinator, changes: Partial<Assign> = {}): Assign {
  return {
    epoch: { term: 1, plan: 1 },
    pipeline: 0,
    stage: 0,
    stageCount: 1,
    layerBegin: 0,
    layerEnd: 4,
    modelDirectory: "/model",
    weightsFingerprint: "fake",
    dtype: "float32",
    kvType: "float32",
    weightFormat: "stored",
    headFormat: "stored",
    blockCount: 8,
    blockSize: 16,
    maxRows: 64,
    predecessor: coordinator.address,
    credits: 8,
    ...changes,
  };
}
