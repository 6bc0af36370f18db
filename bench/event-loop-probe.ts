/**
 * Loaded into a coordinator with `node --import`: a timer that wants to fire every millisecond notes
 * the longest time it was kept from it. Whoever connects to the socket gets that time, in
 * milliseconds, and begins the next measurement. Other processes of the cluster load it and do nothing.
 */
import { createServer } from "node:net";

const socketPath = process.env.EVENT_LOOP_PROBE;
if (process.argv[2] === "coordinator" && socketPath !== undefined) {
  let last = performance.now();
  let longestMs = 0;
  const note = (): void => {
    const now = performance.now();
    longestMs = Math.max(longestMs, now - last);
    last = now;
  };
  setInterval(note, 1).unref();
  createServer((socket) => {
    note();
    socket.end(String(longestMs));
    longestMs = 0;
  })
    .listen(socketPath)
    .unref();
}
