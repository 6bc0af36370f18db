/**
 * Connections between processes: each delivers in order, each on its own; they are slow, they break, and they go
 * silent while one end believes them to be open.
 */
import type { Random } from "../random.js";
import type { Process } from "./process.js";
import type { World } from "./world.js";

export interface NetworkConditions {
  latencyMs: number;
  /** Mean of what comes on top, drawn for each message. */
  jitterMs: number;
  /** A message has to be sent once more: it, and what is behind it, comes later. */
  lossRate: number;
}

const retransmitMs = { least: 40, most: 300 };
/** How long an end believes in a connection over which nothing comes any more (of Node's 50 s, to save time). */
export const keepaliveMs = 15_000;
const connectTimeoutMs = 1_000;
/** A partition shorter than this is bridged by sending once more. */
const bridgedMs = 1_500;

/** One end of a connection. */
export class Endpoint {
  readonly process: Process;
  readonly #connection: Connection;
  onMessage: (message: unknown) => void = () => {};
  /** The other end has closed it, or it broke; not after `close` of this end. */
  onClose: (reason: unknown) => void = () => {};
  isOpen = true;

  constructor(process: Process, connection: Connection) {
    this.process = process;
    this.#connection = connection;
  }

  send(message: unknown): void {
    if (this.isOpen) this.#connection.carry(this, (to) => to.onMessage(message));
  }

  /** Behind what was sent. @param reason Told to the other end. */
  close(reason: unknown = null): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.#connection.carry(this, (to) => to.lose(reason));
  }

  lose(reason: unknown): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.onClose(reason);
  }
}

export const connectionLost = { code: 14, details: "the connection broke" };

export class Connection {
  readonly #network: Network;
  readonly dialler: Endpoint;
  acceptor: Endpoint | null = null;
  /** When what was sent last in each direction arrives. */
  readonly #arrivalMs = [0, 0];
  /** Nothing arrives any more. */
  #silent = false;

  constructor(network: Network, process: Process) {
    this.#network = network;
    this.dialler = new Endpoint(process, this);
  }

  get isSilent(): boolean {
    return this.#silent;
  }

  carry(from: Endpoint, deliver: (to: Endpoint) => void): void {
    const direction = from === this.dialler ? 0 : 1;
    if (this.#silent) return;
    const { loop } = this.#network.world;
    const delayMs = this.#network.delayMs(this);
    if (delayMs === null) {
      this.cut();
      return;
    }
    const atMs = Math.max(loop.nowMs() + delayMs, this.#arrivalMs[direction]!);
    this.#arrivalMs[direction] = atMs;
    loop.at(atMs, () => {
      const to = direction === 0 ? this.acceptor : this.dialler;
      if (this.#silent || to === null) return;
      to.process.run(() => {
        if (to.isOpen) deliver(to);
      });
    });
  }

  /** @param noticedMs When each end, the one that dialled first, hears of it; by default some time within keepalive. */
  cut(noticedMs: readonly [number, number] = this.#network.noticeMs()): void {
    if (this.#silent) return;
    this.#silent = true;
    this.#network.forget(this);
    const { loop } = this.#network.world;
    for (const [index, end] of [this.dialler, this.acceptor].entries()) {
      if (end === null) continue;
      loop.after(noticedMs[index]!, () => end.process.run(() => end.lose(connectionLost)));
    }
  }
}

type Accept = (endpoint: Endpoint) => void;

export class Network {
  readonly world: World;
  readonly #random: Random;
  conditions: NetworkConditions;
  readonly #listeners = new Map<string, { process: Process; accept: Accept }>();
  readonly #connections = new Set<Connection>();
  /** Names of processes that reach only each other, until a time. */
  #partition: { names: ReadonlySet<string>; untilMs: number } | null = null;

  constructor(world: World, random: Random, conditions: NetworkConditions) {
    this.world = world;
    this.#random = random;
    this.conditions = conditions;
  }

  /** Those that dial the address from now on reach this process. */
  listen(process: Process, address: string, accept: Accept): void {
    this.#listeners.set(address, { process, accept });
  }

  dial(process: Process, address: string): Endpoint {
    const connection = new Connection(this, process);
    const { loop } = this.world;
    const { dialler } = connection;
    const listener = this.#listeners.get(address);
    const delayMs = this.conditions.latencyMs;
    if (listener === undefined || !listener.process.alive || this.#isParted(process, listener.process)) {
      const afterMs = listener?.process.alive ? connectTimeoutMs : delayMs;
      loop.after(afterMs, () => process.run(() => dialler.lose(connectionLost)));
      return dialler;
    }
    const acceptor = new Endpoint(listener.process, connection);
    connection.acceptor = acceptor;
    this.#connections.add(connection);
    loop.after(delayMs, () => listener.process.run(() => listener.accept(acceptor)));
    return dialler;
  }

  /** Of a process that died: the others hear of it at once, or only after a while when its machine died with it. */
  died(process: Process, silently: boolean): void {
    for (const connection of [...this.#connections]) {
      if (connection.dialler.process !== process && connection.acceptor?.process !== process) continue;
      const ms = silently ? keepaliveMs : this.conditions.latencyMs;
      connection.cut([ms, ms]);
    }
  }

  /** For so long these processes reach nobody else. */
  part(names: readonly string[], ms: number): void {
    this.#partition = { names: new Set(names), untilMs: this.world.loop.nowMs() + ms };
  }

  heal(): void {
    this.#partition = null;
  }

  /** A connection of this process breaks; sometimes one end does not hear of it for long. */
  breakOne(process: Process, halfOpen: boolean): void {
    const own = [...this.#connections].filter(
      ({ dialler, acceptor }) => dialler.process === process || acceptor?.process === process,
    );
    if (own.length === 0) return;
    const soonMs = this.#random.between(1, 200);
    if (!halfOpen) this.#random.pick(own).cut([soonMs, soonMs]);
    else this.#random.pick(own).cut(this.#random.chance(0.5) ? [soonMs, keepaliveMs] : [keepaliveMs, soonMs]);
  }

  /** Until a message sent now arrives; null when it never does. */
  delayMs({ dialler, acceptor }: Connection): number | null {
    const { latencyMs, jitterMs, lossRate } = this.conditions;
    let ms = latencyMs + (jitterMs > 0 ? this.#random.exponential(jitterMs) : 0);
    if (lossRate > 0 && this.#random.chance(lossRate)) {
      ms += this.#random.between(retransmitMs.least, retransmitMs.most);
    }
    if (acceptor !== null && this.#isParted(dialler.process, acceptor.process)) {
      const leftMs = this.#partition!.untilMs - this.world.loop.nowMs();
      if (leftMs > bridgedMs) return null;
      ms += leftMs;
    }
    return ms;
  }

  noticeMs(): [number, number] {
    return [this.#random.between(100, keepaliveMs), this.#random.between(100, keepaliveMs)];
  }

  forget(connection: Connection): void {
    this.#connections.delete(connection);
  }

  #isParted(one: Process, other: Process): boolean {
    const partition = this.#partition;
    if (partition === null || this.world.loop.nowMs() >= partition.untilMs) return false;
    return partition.names.has(one.name) !== partition.names.has(other.name);
  }
}
