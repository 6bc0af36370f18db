/**
 * The coordinator's two ends of the ring: it serves headers to stage 0, which dials it, and dials
 * the last stage for its results. One pair per pipeline and epoch.
 */
import { RelayError, toRelayError } from "../../common/errors.js";
import { type Epoch, formatEpoch, type PipelineId } from "../../common/ids.js";
import { linkCredits } from "../../common/limits.js";
import type { WorkerTrust } from "../../common/tls.js";
import type { LinkHandlers } from "../../proto/generated/glm/relay/internal/v1/Link.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import { Downstream } from "../../proto/link/downstream.js";
import { resultFrames } from "../../proto/link/frames.js";
import { acceptLink, type ServedPlan } from "../../proto/link/hello.js";
import { Upstream } from "../../proto/link/upstream.js";

export interface LinkEvents {
  /** The last stage's stream is open. */
  opened(epoch: Epoch): void;
  result(result: StepResult__Output): void;
  /** @param stage 0 for the link to stage 0, -1 for the one from the last stage. */
  broken(epoch: Epoch, error: RelayError, stage: 0 | -1): void;
}

interface EpochLinks {
  epoch: Epoch;
  toFirst: Downstream;
  fromLast: Upstream<StepResult__Output> | null;
}

/** What stage 0 has for a predecessor. */
const coordinatorStage = -1;
const noEpoch: Epoch = { term: 0, plan: 0 };

export class CoordinatorLinks {
  readonly #events: LinkEvents;
  readonly #trust: WorkerTrust;
  readonly #current = new Map<PipelineId, EpochLinks>();
  readonly #newest = new Map<PipelineId, Epoch>();

  constructor(events: LinkEvents, trust: WorkerTrust = {}) {
    this.#events = events;
    this.#trust = trust;
  }

  readonly handlers: LinkHandlers = {
    Connect: (call) => acceptLink(call, ({ pipeline }) => this.#served(pipeline as PipelineId)),
  };

  /** A plan was made: stage 0 may dial. */
  begin(pipeline: PipelineId, epoch: Epoch): void {
    this.end(pipeline);
    this.#newest.set(pipeline, epoch);
    this.#current.set(pipeline, { epoch, toFirst: new Downstream(epoch), fromLast: null });
  }

  /** Dials the last stage, again and again while it is not that far yet. */
  dialLast(pipeline: PipelineId, epoch: Epoch, address: string, stageCount: number): void {
    const current = this.#current.get(pipeline);
    if (current?.epoch !== epoch) return;
    const link = new Upstream<StepResult__Output>(
      {
        ...this.#trust,
        predecessor: address,
        epoch,
        pipeline,
        stage: stageCount,
        credits: linkCredits,
        onStale: () => {},
        onReceived: () => {},
        onLost: (error) => this.#events.broken(epoch, error, -1),
      },
      resultFrames,
    );
    current.fromLast = link;
    this.#read(link, epoch).catch((error: unknown) => this.#events.broken(epoch, toRelayError(error), -1));
  }

  /** Sends a header to stage 0 of its pipeline. Credits exceed what is kept in flight, so nothing waits here. */
  send(header: StepHeader): void {
    const current = this.#current.get(header.pipeline as PipelineId);
    if (current === undefined) throw new Error("CoordinatorLinks.send without an epoch");
    void current.toFirst.send({ step: { header, activations: Buffer.alloc(0), checksum: 0 } });
    if (current.toFirst.state !== "broken") return;
    const message = `stage 0 left epoch ${formatEpoch(current.epoch)}`;
    this.#events.broken(current.epoch, new RelayError("worker_lost", message), 0);
  }

  end(pipeline: PipelineId): void {
    const current = this.#current.get(pipeline);
    if (current === undefined) return;
    this.#current.delete(pipeline);
    current.toFirst.close(new RelayError("stale_epoch", `epoch ${formatEpoch(current.epoch)} is over`));
    current.fromLast?.close();
  }

  #served(pipeline: PipelineId): { plan: ServedPlan | null; newest: Epoch } {
    const newest = this.#newest.get(pipeline) ?? noEpoch;
    const current = this.#current.get(pipeline);
    if (current === undefined) return { plan: null, newest };
    const { epoch, toFirst: downstream } = current;
    return { plan: { epoch, pipeline, stage: coordinatorStage, downstream }, newest };
  }

  async #read(link: Upstream<StepResult__Output>, epoch: Epoch): Promise<void> {
    if (!(await link.open())) return;
    this.#events.opened(epoch);
    for (let result = await link.next(); result !== null; result = await link.next()) {
      this.#events.result(result);
      link.consumed();
    }
  }
}
