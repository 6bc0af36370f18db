/** What membership is told once, and whom it tells. */
import type { RelayError } from "../../common/errors.js";
import type { Epoch, PipelineId } from "../../common/ids.js";
import type { Precision } from "../../models/quantization.js";
import type { LayerRange } from "../placement/cut.js";
import type { PlacementModel } from "../placement/placement.js";
import type { MembersPorts } from "./members.js";

export interface MembershipConfig {
  pipelineCount: number;
  /** Of each pipeline. */
  stageCount: number;
  /** Layers of each stage, made by hand; absent: placement decides. */
  cut?: readonly LayerRange[];
  modelDirectory: string;
  /** As overridesText writes them (checkpoint/overrides.ts). */
  configOverrides: string;
  /** Directory of a prefix encoder; "" for none. */
  prefixEncoder: string;
  fingerprint: string;
  precision: Precision;
  /** Rows of one step, at most. */
  maxRows: number;
  placementModel: PlacementModel;
  minBlocks: number;
  maxBlocks: number;
  /** host:port that stage 0 dials. */
  clusterAddress: () => string;
  /** This leadership's number. */
  term: number;
}

export interface MembershipPorts extends Omit<MembersPorts, "lost"> {
  /** A plan was made: stage 0 will dial for its steps. */
  planMade(pipeline: PipelineId, epoch: Epoch): void;
  /** All stages are loaded: dial the last one for its results. */
  openResultLink(pipeline: PipelineId, epoch: Epoch, address: string, stageCount: number): void;
  /** The plan's links are closed quietly. */
  planOver(pipeline: PipelineId): void;
  /** All stages are linked: the pipeline of this epoch takes steps. */
  formed(pipeline: PipelineId, epoch: Epoch, blockCount: number, stages: readonly LayerRange[]): void;
  /** The formed pipeline is gone. */
  dissolved(pipeline: PipelineId, error: RelayError): void;
}
