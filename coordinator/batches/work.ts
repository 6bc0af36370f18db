/** What is done for batches in a thread, because it takes longer than the coordinator may stand still. */
import { type CheckResult, type CheckTask, checkInput } from "./check.js";
import {
  type CountResult,
  type CountTask,
  countLines,
  type MergeResult,
  type MergeTask,
  mergeLedgers,
} from "./merge.js";

export interface Work {
  check: { task: CheckTask; result: CheckResult };
  count: { task: CountTask; result: CountResult };
  merge: { task: MergeTask; result: MergeResult };
}
export type WorkKind = keyof Work;

export const workers: {
  [Kind in WorkKind]: (task: Work[Kind]["task"]) => Work[Kind]["result"] | Promise<Work[Kind]["result"]>;
} = { check: checkInput, count: countLines, merge: mergeLedgers };

/** An error crosses as a value: a thrown one would arrive without its code. */
export type WorkAnswer = { result: unknown } | { message: string; code: string | undefined };
