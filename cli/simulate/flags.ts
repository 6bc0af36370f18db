/** What `simulate` was told, and what follows where it was told nothing. */
import type { Length } from "../../simulation/hardware/load.js";
import type { PrecisionFlags } from "../precision.js";
import type { KillFlag } from "./values.js";

export const clientsDefault = 8;
/** Of a closed load: each client asks so many times. */
export const roundsPerClient = 4;
export const openRequestsDefault = 200;

export interface SimulateFlags extends PrecisionFlags {
  model: string;
  gpus?: string;
  hardware?: string;
  pipelines?: number;
  stages?: number;
  rate?: number;
  concurrency?: number;
  requests?: number;
  promptTokens?: Length;
  replyTokens: Length;
  class?: number;
  input?: string;
  acceptance?: number;
  itlTargetMs: number;
  prefillChunk: number;
  microBatches?: number;
  kill?: KillFlag[];
  restartAfter: number | null;
  bandwidthEfficiency?: number;
  computeEfficiency?: number;
  profile?: string;
  seed: number;
  limit: number;
  svg?: string;
  svgWindow?: { fromMs: number; toMs: number };
  json?: boolean;
}

export function requestsOf({ requests, concurrency, rate }: SimulateFlags): number {
  if (requests !== undefined) return requests;
  return rate === undefined ? roundsPerClient * (concurrency ?? clientsDefault) : openRequestsDefault;
}

export const clientsOf = ({ concurrency }: SimulateFlags): number => concurrency ?? clientsDefault;
