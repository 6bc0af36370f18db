/**
 * Redis in memory, for several clients: the commands that the ledger (coordinator/queue) uses. It goes away and comes
 * back, and may have lost its last second then, as with appendfsync everysec.
 */
import type { Process } from "./process.js";
import type { World } from "./world.js";

const roundTripMs = 0.8;
const fsyncMs = 1_000;

/** A value as it was before a write. */
interface Undo {
  atMs: number;
  key: string;
  before: unknown;
}

export class SimRedis {
  readonly #world: World;
  readonly #values = new Map<string, unknown>();
  /** Writes of the last second. */
  #undo: Undo[] = [];
  readonly #upListeners = new Set<(up: boolean) => void>();
  up = true;
  /** When it last forgot something; nothing accepted before is certain then. */
  tailLostAtMs = Number.NEGATIVE_INFINITY;
  /** What is younger than this was forgotten then. */
  tailLostFromMs = Number.NEGATIVE_INFINITY;

  constructor(world: World) {
    this.#world = world;
  }

  get(key: string): unknown {
    return this.#values.get(key);
  }

  /** @param value undefined deletes. */
  set(key: string, value: unknown): void {
    const { loop } = this.#world;
    const nowMs = loop.nowMs();
    if (this.#undo.length > 0 && this.#undo[0]!.atMs < nowMs - 2 * fsyncMs) {
      this.#undo = this.#undo.filter(({ atMs }) => atMs >= nowMs - fsyncMs);
    }
    this.#undo.push({ atMs: nowMs, key, before: this.#values.get(key) });
    this.#put(key, value);
  }

  delete(keys: readonly string[]): void {
    for (const key of keys) this.set(key, undefined);
  }

  /** Those that begin with the text, in order. */
  keys(prefix: string): string[] {
    return [...this.#values.keys()].filter((key) => key.startsWith(prefix)).sort();
  }

  onUp(listener: (up: boolean) => void): () => void {
    this.#upListeners.add(listener);
    return () => this.#upListeners.delete(listener);
  }

  /** @param lostMs Of writes before now, at most a second. */
  goDown(lostMs: number): void {
    if (!this.up) return;
    const nowMs = this.#world.loop.nowMs();
    this.up = false;
    for (
      let undo = this.#undo.at(-1);
      undo !== undefined && undo.atMs > nowMs - lostMs;
      undo = this.#undo.at(-1)
    ) {
      this.#put(undo.key, undo.before);
      this.#undo.pop();
    }
    if (lostMs > 0) {
      this.tailLostAtMs = nowMs;
      this.tailLostFromMs = nowMs - lostMs;
    }
    for (const listener of [...this.#upListeners]) listener(false);
  }

  comeUp(): void {
    if (this.up) return;
    this.up = true;
    for (const listener of [...this.#upListeners]) listener(true);
  }

  /** A command of a process, answered after a round trip; fails when Redis is away then. */
  call<T>(process: Process, command: () => T): Promise<T> {
    const { loop } = this.#world;
    return new Promise((resolve, reject) => {
      loop.after(roundTripMs / 2, () => {
        const wasUp = this.up;
        const value = wasUp ? command() : undefined;
        loop.after(roundTripMs / 2, () =>
          process.run(() => {
            if (wasUp && this.up) resolve(value as T);
            else reject(new Error("Redis is away"));
          }),
        );
      });
    });
  }

  #put(key: string, value: unknown): void {
    if (value === undefined) this.#values.delete(key);
    else this.#values.set(key, value);
  }
}

type Reply = [Error | null, unknown];

/** The part of ioredis that the ledger uses. */
export class RedisClient {
  readonly #redis: SimRedis;
  readonly #process: Process;
  #onReady: (() => void)[] = [];

  constructor(redis: SimRedis, process: Process) {
    this.#redis = redis;
    this.#process = process;
    const off = redis.onUp((up) => {
      if (!up) return;
      process.run(() => {
        for (const listener of this.#onReady) listener();
      });
    });
    process.onDeath(off);
  }

  get status(): string {
    return this.#redis.up ? "ready" : "reconnecting";
  }

  on(event: string, listener: () => void): void {
    if (event === "ready") this.#onReady.push(listener);
  }

  set(key: string, value: string): Promise<unknown> {
    return this.#redis.call(this.#process, () => this.#redis.set(key, value));
  }

  get(key: string): Promise<string | null> {
    return this.#redis.call(this.#process, () => (this.#redis.get(key) as string | undefined) ?? null);
  }

  mget(keys: string[]): Promise<(string | null)[]> {
    return this.#redis.call(this.#process, () =>
      keys.map((key) => (this.#redis.get(key) as string | undefined) ?? null),
    );
  }

  del(keys: string[]): Promise<unknown> {
    return this.#redis.call(this.#process, () => this.#redis.delete(keys));
  }

  scan(_cursor: string, _match: string, pattern: string): Promise<[string, string[]]> {
    const prefix = pattern.slice(0, -1);
    return this.#redis.call(this.#process, () => ["0", this.#redis.keys(prefix)]);
  }

  multi(): Commands {
    return new Commands(this.#redis, this.#process);
  }

  pipeline(): Commands {
    return new Commands(this.#redis, this.#process);
  }
}

class Commands {
  readonly #redis: SimRedis;
  readonly #process: Process;
  readonly #commands: (() => unknown)[] = [];

  constructor(redis: SimRedis, process: Process) {
    this.#redis = redis;
    this.#process = process;
  }

  set(key: string, value: string): this {
    return this.#add(() => this.#redis.set(key, value));
  }

  del(...keys: string[]): this {
    return this.#add(() => this.#redis.delete(keys));
  }

  expire(): this {
    return this.#add(() => 1);
  }

  rename(from: string, to: string): this {
    return this.#add(() => {
      this.#redis.set(to, this.#redis.get(from));
      this.#redis.set(from, undefined);
    });
  }

  setrange(key: string, offset: number, bytes: Buffer): this {
    return this.#add(() => {
      const before = (this.#redis.get(key) as Buffer | undefined) ?? Buffer.alloc(0);
      const after = Buffer.alloc(Math.max(before.length, offset + bytes.length));
      before.copy(after);
      bytes.copy(after, offset);
      this.#redis.set(key, after);
    });
  }

  getBuffer(key: string): this {
    return this.#add(() => this.#redis.get(key) ?? null);
  }

  exec(): Promise<Reply[]> {
    return this.#redis.call(this.#process, () => this.#commands.map((command): Reply => [null, command()]));
  }

  #add(command: () => unknown): this {
    this.#commands.push(command);
    return this;
  }
}
