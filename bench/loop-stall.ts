/** Asks event-loop-probe.ts in another process. */
import { connect } from "node:net";
import type { LoopStall } from "./loop-watch.js";

export type { LoopStall } from "./loop-watch.js";

/** @param path The probe's socket. @returns The longest stall since it was asked last. */
export function stallSinceLast(path: string): Promise<LoopStall> {
  return new Promise((resolve, reject) => {
    let text = "";
    connect(path)
      .setEncoding("utf8")
      .on("data", (data: string) => {
        text += data;
      })
      .on("error", reject)
      .on("close", () => resolve(JSON.parse(text) as LoopStall));
  });
}
