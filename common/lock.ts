/**
 * Locks between processes of one machine (of one network namespace, to be exact). A lock is a socket in Linux's abstract namespace: the kernel
 * drops it with the process that holds it, so there is never a stale one.
 */
import { createHash } from "node:crypto";
import { createServer, type Server } from "node:net";

/** The name under which whoever wants this path to itself locks it. */
export function lockName(path: string): string {
  return `glm-relay-${createHash("sha256").update(path).digest("hex").slice(0, 32)}`;
}

/** @returns The lock, held until it is closed or the process ends; null when somebody else holds it. */
export function tryLock(name: string): Promise<Server | null> {
  return new Promise((resolve) => {
    const server = createServer((socket) => socket.destroy());
    server.once("error", () => resolve(null));
    // The NUL in front marks an abstract name.
    server.listen(`\0${name}`, () => resolve(server));
  });
}
