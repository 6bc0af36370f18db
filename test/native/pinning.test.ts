/** Compute threads that stay on a processor. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { Stage } from "../../native/index.js";
import {
  greedy,
  randomModel,
  rows,
  stageConfig,
  TINY,
  temporaryFolder,
  tokenStep,
  writeTensors,
} from "./support.js";

const folder = temporaryFolder();
const tensors = writeTensors(join(folder.path, "tiny.bin"), randomModel(TINY, "float32", 5));
const options = { maxRows: 8, blockCount: 4 };

/** Processors that a thread of this process may use, as the kernel writes them. */
const allowed = (thread = String(process.pid)): string =>
  /^Cpus_allowed_list:\s*(.*)$/m.exec(readFileSync(`/proc/self/task/${thread}/status`, "utf8"))![1]!;

/** Of all threads, how many may use just this processor. */
function pinnedTo(cpu: number): number {
  return readdirSync("/proc/self/task").filter((thread) => allowed(thread) === String(cpu)).length;
}

/** The first and the last one that this process may use. */
function ends(): [number, number] {
  const numbers = allowed().match(/\d+/g)!.map(Number);
  return [numbers[0]!, numbers.at(-1)!];
}

test("each compute thread stays on its processor, and computes what any other would", async ({ skip }) => {
  const [one, other] = ends();
  skip(one === other, "this process may use one processor only");
  const before = [pinnedTo(one), pinnedTo(other)];
  const cpus = Int32Array.from([other, one, one]);
  const config = stageConfig(tensors, TINY, 0, 4, { ...options, threads: 3 });
  const [pinned, free] = [await Stage.create({ ...config, cpus }), await Stage.create(config)];
  expect([pinnedTo(one), pinnedTo(other)]).toEqual([before[0]! + 2, before[1]! + 1]);
  const step = { ...tokenStep([rows(0, 3, [0])], [1, 2, 3]), samples: [greedy(2, 3)] };
  expect((await pinned.step(step)).samples).toEqual((await free.step(step)).samples);
  await pinned.close();
  await free.close();
});

test("a processor that may not be used is refused, and so are too few", async () => {
  const config = stageConfig(tensors, TINY, 0, 4, { ...options, threads: 2 });
  const create = (cpus: number[]) => Stage.create({ ...config, cpus: Int32Array.from(cpus) });
  await expect(create([ends()[0], 1_023])).rejects.toThrow(
    "processor 1023 to pin a thread to: this process may not use it",
  );
  await expect(create([-1, 0])).rejects.toThrow("processor -1 to pin");
  await expect(create([0])).rejects.toThrow("cpus: 1 of them, expected one for each of 2 threads");
});
