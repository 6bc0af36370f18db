/** A simulated worker process: its device, its processor, the weights that it holds, and what it has computed. */

import type { EventLoop } from "../event-loop.js";
import type { Device } from "./devices.js";
import type { Hardware, Host } from "./hardware.js";
import { Link } from "./link.js";
import { OwnProcessor, type Processor, SharedHost } from "./processor.js";

export interface SimulatedWorker {
  readonly index: number;
  readonly id: string;
  readonly device: Device;
  readonly host: Host;
  readonly processor: Processor;
  /** What it computes on together with others, where messages are handled too; null: it has its device to itself. */
  readonly shared: SharedHost | null;
  /** To a worker of the same host, and to everybody else. */
  readonly local: Link;
  readonly uplink: Link;
  /** Its control stream; a process that comes back has a new one. */
  connection: number;
  alive: boolean;
  /** Layers whose weights it holds, "" for none. */
  loaded: string;
  /** Time in which it computed, and steps. */
  busyMs: number;
  steps: number;
}

/** In the order of hosts; worker2 is the third. */
export function simulatedWorkers(
  { hosts, withinHost, betweenHosts }: Hardware,
  loop: EventLoop,
): SimulatedWorker[] {
  const workers: SimulatedWorker[] = [];
  for (const host of hosts) {
    const common = new SharedHost(loop);
    for (const device of host.devices) {
      const shared = device.shared === null ? null : common;
      const index = workers.length;
      workers.push({
        index,
        id: `worker${index}`,
        device,
        host,
        processor: shared?.processor() ?? new OwnProcessor(loop),
        shared,
        local: new Link(withinHost),
        uplink: new Link(betweenHosts),
        connection: index + 1,
        alive: false,
        loaded: "",
        busyMs: 0,
        steps: 0,
      });
    }
  }
  return workers;
}
