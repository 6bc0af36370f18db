/** Where the CPU time of some work goes, by the folders of this package: V8's sampling profiler around it. */
import { Session } from "node:inspector/promises";
import { sep } from "node:path";
import { fileURLToPath } from "node:url";
import { packageRoot } from "../common/package.js";

const samplingUs = 1_000;

export interface CpuShares<T> {
  result: T;
  /** Microseconds by what `partOf` says; "other" is the garbage collector and what was called from nowhere. */
  us: Map<string, number>;
}

/**
 * Built-in functions count to the nearest function of ours that called them.
 * @param partOf Of a file below dist/, like "coordinator/core.js"; null: whatever its caller is.
 */
export async function cpuShares<T>(
  work: () => T,
  partOf: (file: string) => string | null,
): Promise<CpuShares<T>> {
  const session = new Session();
  session.connect();
  try {
    await session.post("Profiler.enable");
    await session.post("Profiler.setSamplingInterval", { interval: samplingUs });
    await session.post("Profiler.start");
    const result = work();
    const { profile } = await session.post("Profiler.stop");
    const parts = new Map<number, string>();
    const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
    const describe = (id: number, caller: string): void => {
      const node = nodes.get(id)!;
      const part = partOf(fileBelowDist(node.callFrame.url)) ?? caller;
      parts.set(id, part);
      for (const child of node.children ?? []) describe(child, part);
    };
    describe(profile.nodes[0]!.id, "other");
    const us = new Map<string, number>();
    const { samples = [], timeDeltas = [] } = profile;
    for (const [index, id] of samples.entries()) {
      const part = parts.get(id)!;
      us.set(part, (us.get(part) ?? 0) + (timeDeltas[index] ?? 0));
    }
    return { result, us };
  } finally {
    session.disconnect();
  }
}

/** "" for what is not ours. */
function fileBelowDist(url: string): string {
  if (!url.startsWith("file:")) return "";
  const dist = `${packageRoot}${sep}dist${sep}`;
  const path = fileURLToPath(url);
  return path.startsWith(dist) ? path.slice(dist.length).split(sep).join("/") : "";
}
