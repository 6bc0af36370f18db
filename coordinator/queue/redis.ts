/** Connections to Redis: one way to open them, one way to say what is wrong with the server. */
import { Redis } from "ioredis";
import { bareHost } from "../../common/address.js";
import { RelayError } from "../../common/errors.js";

/** How long a start waits for Redis, and the pauses between attempts to come back to it. */
const connectLimitMs = 5_000;
const reconnectMs = { first: 50, most: 1_000 };
const oldestRedis = [6, 2] as const;

/** What ioredis and BullMQ both take. */
export type RedisConnection = {
  host: string;
  port: number;
  db: number;
  username?: string;
  password?: string;
  tls?: object;
  connectTimeout: number;
  maxRetriesPerRequest: number | null;
  enableOfflineQueue: boolean;
  retryStrategy: (attempt: number) => number;
};

/**
 * @param blocking BullMQ's worker connection waits inside Redis and must retry for ever; all others
 *   fail at once while Redis is away, so that a client gets its 503 and not a silence.
 */
export function redisOptions(url: string, blocking: boolean): RedisConnection {
  const parsed = parseRedisUrl(url);
  const options: RedisConnection = {
    host: bareHost(parsed.hostname),
    port: parsed.port === "" ? 6379 : Number(parsed.port),
    db: Number(parsed.pathname.slice(1) || "0"),
    connectTimeout: connectLimitMs,
    maxRetriesPerRequest: blocking ? null : 1,
    enableOfflineQueue: blocking,
    retryStrategy: (attempt) => Math.min(reconnectMs.most, reconnectMs.first * 2 ** Math.min(attempt, 10)),
  };
  if (parsed.username !== "") options.username = decodeURIComponent(parsed.username);
  if (parsed.password !== "") options.password = decodeURIComponent(parsed.password);
  if (parsed.protocol === "rediss:") options.tls = {};
  return options;
}

function parseRedisUrl(url: string): URL {
  const expected = "expected redis://HOST:PORT[/DB] or rediss://HOST:PORT[/DB]";
  if (!URL.canParse(url)) throw new RelayError("invalid_configuration", `the Redis URL is none: ${expected}`);
  const parsed = new URL(url);
  if (!["redis:", "rediss:"].includes(parsed.protocol) || !/^(\/\d*)?$/.test(parsed.pathname)) {
    // Without its password.
    const shown = `${parsed.protocol}//${parsed.host}${parsed.pathname}`;
    throw new RelayError("invalid_configuration", `Redis URL "${shown}": ${expected}`);
  }
  return parsed;
}

/** Name of the server without user and password. */
export function redisName(url: string): string {
  const { hostname, port } = parseRedisUrl(url);
  return `${hostname}:${port === "" ? "6379" : port}`;
}

/**
 * Checks that Redis is there and fit to hold a queue.
 * @throws RelayError queue_unavailable when it does not answer, invalid_configuration when its
 *   version is too old or its memory policy may evict what was accepted.
 */
export async function requireFitRedis(url: string): Promise<void> {
  const redis = new Redis({ ...redisOptions(url, false), lazyConnect: true, retryStrategy: () => null });
  // The failure of connect() below says the same; without a listener ioredis prints it as well.
  redis.on("error", () => {});
  try {
    await redis.connect();
    const info = await redis.info();
    const version = /^redis_version:(.+)$/m.exec(info)?.[1]?.trim() ?? "unknown";
    const [major = 0, minor = 0] = version.split(".").map(Number);
    if (major < oldestRedis[0] || (major === oldestRedis[0] && minor < oldestRedis[1])) {
      throw new RelayError(
        "invalid_configuration",
        `Redis at ${redisName(url)} is version ${version}, expected ${oldestRedis.join(".")} or newer`,
      );
    }
    const policy = /^maxmemory_policy:(.+)$/m.exec(info)?.[1]?.trim() ?? "unknown";
    if (policy !== "noeviction") {
      throw new RelayError(
        "invalid_configuration",
        `Redis at ${redisName(url)} has maxmemory-policy "${policy}", expected "noeviction": it could drop accepted requests`,
      );
    }
  } catch (error) {
    if (error instanceof RelayError) throw error;
    const reason = error instanceof Error ? error.message : String(error);
    throw new RelayError("queue_unavailable", `Redis at ${redisName(url)} does not answer: ${reason}`, {
      cause: error,
    });
  } finally {
    redis.disconnect();
  }
}
