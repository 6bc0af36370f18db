/**
 * Loaded into every process of a cluster with `node --import`: whoever connects to its socket in
 * HEAP_PROBE_FOLDER gets what the process holds, once everything that nobody needs has been collected.
 */
import { createServer } from "node:net";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { isMainThread } from "node:worker_threads";

/** Bytes. */
export interface HeldMemory {
  /** JavaScript objects, and what they hold outside of the heap. */
  heap: number;
  rss: number;
}

export const probeSocket = (folder: string, pid: number): string => join(folder, `${pid}.sock`);

const folder = process.env.HEAP_PROBE_FOLDER;
if (folder !== undefined && isMainThread) {
  // The flag is not allowed in NODE_OPTIONS, by which this file comes.
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  createServer((socket) => {
    // What finalizers release is collected by the second one.
    collect();
    collect();
    const { heapUsed, external, rss } = process.memoryUsage();
    socket.end(JSON.stringify({ heap: heapUsed + external, rss } satisfies HeldMemory));
  })
    .listen(probeSocket(folder, process.pid))
    .unref();
}
