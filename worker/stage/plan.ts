/** A plan's part for this worker: Assign, checked once at the border. */
import { type Overrides, overridesText, parseOverrides } from "../../checkpoint/overrides.js";
import { RelayError } from "../../common/errors.js";
import type { Epoch } from "../../common/ids.js";
import { linkCredits, maxContextRows, maxStepRows } from "../../common/limits.js";
import {
  formatName,
  type KvType,
  kvTypes,
  parseFormatName,
  type WeightFormat,
} from "../../models/quantization.js";
import type { DType } from "../../native/index.js";
import type { Assign__Output } from "../../proto/generated/glm/relay/internal/v1/Assign.js";

const mostRows = maxStepRows + maxContextRows;

export interface StagePlan {
  readonly epoch: Epoch;
  readonly pipeline: number;
  readonly stage: number;
  readonly stageCount: number;
  readonly layerBegin: number;
  /** Exclusive. */
  readonly layerEnd: number;
  readonly modelDirectory: string;
  /** Fields of config.json that are replaced. */
  readonly overrides: Overrides;
  /** Directory of a prefix encoder beside the checkpoint. */
  readonly prefixEncoder: string | null;
  readonly weightsFingerprint: string;
  readonly dtype: DType;
  readonly kvType: KvType;
  /** Of the layers' matrices and of the head; null: as stored. */
  readonly weights: WeightFormat | null;
  readonly headWeights: WeightFormat | null;
  readonly blockCount: number;
  readonly blockSize: number;
  readonly maxRows: number;
  /** host:port of the previous stage, of the coordinator for stage 0. */
  readonly predecessor: string;
  readonly credits: number;
  /** What placement has counted for the stage; absent: the coordinator has not told. */
  readonly planned?: PlannedBytes | null;
}

export interface PlannedBytes {
  readonly weightBytes: number;
  readonly kvBytes: number;
  readonly workspaceBytes: number;
  /** Of the process, or of CUDA. */
  readonly processBytes: number;
  /** What the worker offers for all of it. */
  readonly memoryBytes: number;
}

export const isFirst = (plan: StagePlan): boolean => plan.stage === 0;
export const isLast = (plan: StagePlan): boolean => plan.stage === plan.stageCount - 1;

/** The same key means that a built stage serves the new plan as it is; block tables start empty anyway. */
export function stageKey(plan: StagePlan): string {
  return JSON.stringify([
    plan.modelDirectory,
    overridesText(plan.overrides),
    plan.prefixEncoder,
    plan.weightsFingerprint,
    plan.layerBegin,
    plan.layerEnd,
    isFirst(plan),
    isLast(plan),
    plan.dtype,
    plan.kvType,
    formatName(plan.weights),
    formatName(plan.headWeights),
    plan.blockCount,
    plan.blockSize,
    plan.maxRows,
  ]);
}

/** @throws RelayError invalid_configuration naming the field and what was expected. */
export function decodeAssign(assign: Assign__Output): StagePlan {
  const { epoch } = assign;
  require(epoch !== null, "epoch", "absent", "present");
  const { dtype, stage, stageCount, layerBegin, layerEnd, blockCount, blockSize, maxRows, credits } = assign;
  requireDtype(dtype);
  requireKvType(assign.kvType);
  const weights = formatOf("weight_format", assign.weightFormat);
  const headWeights = formatOf("head_format", assign.headFormat);
  require(stage < stageCount, "stage", stage, `less than the ${stageCount} stages`);
  require(layerBegin < layerEnd, "layers", `[${layerBegin}, ${layerEnd})`, "at least one");
  require(blockCount > 0, "block_count", blockCount, "at least 1");
  require(blockSize > 0, "block_size", blockSize, "at least 1");
  require(maxRows > 0 && maxRows <= mostRows, "max_rows", maxRows, `1 to ${mostRows}`);
  require(credits > 0 && credits <= linkCredits, "credits", credits, `1 to ${linkCredits}`);
  return {
    epoch,
    pipeline: assign.pipeline,
    stage,
    stageCount,
    layerBegin,
    layerEnd,
    modelDirectory: assign.modelDirectory,
    overrides: parseOverrides(assign.configOverrides),
    prefixEncoder: assign.prefixEncoder === "" ? null : assign.prefixEncoder,
    weightsFingerprint: assign.weightsFingerprint,
    dtype,
    kvType: assign.kvType,
    weights,
    headWeights,
    blockCount,
    blockSize,
    maxRows,
    predecessor: assign.predecessor,
    credits,
    planned: assign.planned,
  };
}

function require(holds: boolean, field: string, value: unknown, expected: string): asserts holds {
  if (holds) return;
  throw new RelayError("invalid_configuration", `plan's ${field} is ${value}: expected ${expected}`);
}

function formatOf(field: string, name: string): WeightFormat | null {
  const format = parseFormatName(name);
  require(format !== undefined, field, `"${name}"`, 'a name such as "stored" or "int4-g32-search"');
  return format;
}

function requireKvType(value: string): asserts value is KvType {
  require(kvTypes.some((known) => known === value), "kv_type", `"${value}"`, kvTypes.join(", "));
}

function requireDtype(value: string): asserts value is DType {
  const known: readonly string[] = ["float32", "float16", "bfloat16"] satisfies DType[];
  require(known.includes(value), "dtype", `"${value}"`, known.join(", "));
}
