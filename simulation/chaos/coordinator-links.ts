/** The coordinator's two ends of each ring (coordinator/pipeline/links.ts), over simulated connections. */
import { RelayError } from "../../common/errors.js";
import { type Epoch, formatEpoch } from "../../common/ids.js";
import type { StepHeader } from "../../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../../proto/generated/glm/relay/internal/v1/StepResult.js";
import { Downstream } from "../../proto/link/downstream.js";
import { Receiver, serveLink } from "./links.js";
import type { Endpoint, Network } from "./network.js";
import type { Process } from "./process.js";

export interface LinkEvents {
  opened(epoch: Epoch): void;
  result(result: StepResult__Output): void;
  broken(epoch: Epoch, error: RelayError, stage: 0 | -1): void;
}

interface EpochLinks {
  epoch: Epoch;
  toFirst: Downstream;
  fromLast: Receiver<StepResult__Output> | null;
}

export class SimCoordinatorLinks {
  readonly #process: Process;
  readonly #network: Network;
  readonly #events: LinkEvents;
  readonly #current = new Map<number, EpochLinks>();
  readonly #newest = new Map<number, Epoch>();

  constructor(process: Process, network: Network, address: string, events: LinkEvents) {
    this.#process = process;
    this.#network = network;
    this.#events = events;
    network.listen(process, address, (endpoint: Endpoint) =>
      serveLink(endpoint, ({ pipeline }) => {
        const newest = this.#newest.get(pipeline) ?? { term: 0, plan: 0 };
        const current = this.#current.get(pipeline);
        if (current === undefined) return { plan: null, newest };
        return {
          plan: { epoch: current.epoch, pipeline, stage: -1, downstream: current.toFirst },
          newest,
        };
      }),
    );
  }

  begin(pipeline: number, epoch: Epoch): void {
    this.end(pipeline);
    this.#newest.set(pipeline, epoch);
    this.#current.set(pipeline, { epoch, toFirst: new Downstream(epoch), fromLast: null });
  }

  dialLast(pipeline: number, epoch: Epoch, address: string, stageCount: number): void {
    const current = this.#current.get(pipeline);
    if (current?.epoch !== epoch) return;
    const receiver: Receiver<StepResult__Output> = new Receiver<StepResult__Output>(
      this.#process,
      this.#network,
      {
        predecessor: address,
        epoch,
        pipeline,
        stage: stageCount,
        onOpen: () => this.#events.opened(epoch),
        onFrame: (result) => {
          this.#events.result(result);
          receiver.consumed();
        },
        onLost: (error) => this.#events.broken(epoch, error, -1),
      },
      (result) => ({ epoch: result.epoch!, pipeline: result.pipeline, step: result.step }),
    );
    current.fromLast = receiver;
    receiver.dial();
  }

  send(header: StepHeader): void {
    const current = this.#current.get(header.pipeline!);
    if (current === undefined) throw new Error("SimCoordinatorLinks.send without an epoch");
    void current.toFirst.send({ header: copyOf(header), rows: [], sliceRows: null } as object);
    if (current.toFirst.state !== "broken") return;
    const message = `stage 0 left epoch ${formatEpoch(current.epoch)}`;
    this.#events.broken(current.epoch, new RelayError("worker_lost", message), 0);
  }

  end(pipeline: number): void {
    const current = this.#current.get(pipeline);
    if (current === undefined) return;
    this.#current.delete(pipeline);
    current.toFirst.close(new RelayError("stale_epoch", `epoch ${formatEpoch(current.epoch)} is over`));
    current.fromLast?.close();
  }
}

/** As it crosses a process, read at once: what the coordinator changes afterwards does not reach the workers. */
function copyOf(header: StepHeader): StepHeader {
  const { sequences = [], ended = [], copies = [], slice = null } = header;
  return {
    ...header,
    sequences: sequences.map((rows) => ({
      ...rows,
      sampling: rows.sampling == null ? null : { ...rows.sampling },
      context: rows.context ?? null,
    })),
    ended: [...ended],
    copies: copies.map((copy) => ({ ...copy })),
    slice: slice === null ? null : { ...slice, rows: slice.rows == null ? null : { ...slice.rows } },
    stageUs: [],
  };
}
