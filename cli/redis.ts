/** The Redis that `up` brings along when nobody names one. */
import { accessSync, constants } from "node:fs";
import { connect, createServer } from "node:net";
import { delimiter, join } from "node:path";
import { CommandError } from "./errors.js";

/** A probe that hears nothing this long counts as not ready. */
const probeLimitMs = 500;
/** What INFO and PING answer is about 6 KiB. */
const answerBytesMax = 64 * 1024;

/**
 * The path of `redis-server` or `valkey-server`.
 * @throws CommandError with the line that installs one.
 */
export function findRedisServer(path = process.env.PATH ?? ""): string {
  for (const program of ["redis-server", "valkey-server"]) {
    for (const directory of path.split(delimiter).filter((entry) => entry !== "")) {
      const file = join(directory, program);
      try {
        accessSync(file, constants.X_OK);
        return file;
      } catch {
        // Not in this directory.
      }
    }
  }
  const sudo = process.getuid?.() === 0 ? "" : "sudo ";
  throw new CommandError(
    "no redis-server or valkey-server on the PATH: " +
      `run \`${sudo}apt-get update && ${sudo}apt-get install -y redis-server\`, or name a server with --redis URL`,
  );
}

/** Loopback only, nothing ever evicted, an append-only file as the single copy on disk. */
export function redisArguments(port: number, dataDir: string): string[] {
  return [
    ...["--port", String(port), "--bind", "127.0.0.1", "--protected-mode", "yes"],
    ...["--dir", dataDir, "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""],
    ...["--maxmemory-policy", "noeviction", "--daemonize", "no"],
  ];
}

/** True when the server on this port is the process `pid` and has read its data. */
export function probeRedis(port: number, pid: number): Promise<boolean> {
  return new Promise((resolve) => {
    let answer = "";
    const socket = connect({ host: "127.0.0.1", port });
    const finish = (ready: boolean) => {
      socket.destroy();
      resolve(ready);
    };
    socket.setTimeout(probeLimitMs, () => finish(false));
    socket.once("error", () => finish(false));
    socket.once("close", () => resolve(false));
    socket.once("connect", () => socket.write("INFO server\r\nPING\r\n"));
    socket.on("data", (chunk) => {
      answer += chunk.toString("latin1");
      if (/^-LOADING/m.test(answer) || answer.length > answerBytesMax) finish(false);
      // Another program may have taken the port first; then ours is about to give up.
      else if (/^\+PONG\r/m.test(answer)) finish(new RegExp(`^process_id:${pid}\r`, "m").test(answer));
    });
  });
}

/** A loopback port that is free now; who uses it must live with losing the race for it. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

/** @throws CommandError naming the port when it cannot be listened on. */
export function requireFreePort(port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => {
      const reason = error.code === "EADDRINUSE" ? "is in use" : `cannot be used (${error.code})`;
      reject(
        new CommandError(
          `port ${port} on 127.0.0.1 ${reason}: choose another with --port, or 0 for any free one`,
          "invalid_configuration",
        ),
      );
    });
    server.listen(port, "127.0.0.1", () => server.close(() => resolve()));
  });
}
