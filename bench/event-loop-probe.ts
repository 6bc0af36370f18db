/**
 * Loaded into a coordinator with `node --import`: watches its event loop. Whoever connects to the socket
 * gets the longest stall as JSON and begins the next measurement. Other processes of the cluster load
 * it and do nothing.
 */
import { createServer } from "node:net";
import { LoopWatch } from "./loop-watch.js";

const socketPath = process.env.EVENT_LOOP_PROBE;
if (process.argv[2] === "coordinator" && socketPath !== undefined) {
  const watch = new LoopWatch(1);
  createServer((socket) => socket.end(JSON.stringify(watch.take())))
    .listen(socketPath)
    .unref();
}
