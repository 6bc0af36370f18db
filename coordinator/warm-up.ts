/** The first request through a new pipeline: one greedy token after token 0 proves that every stage answers. */
import { type PipelineId, type RequestId, requestId } from "../common/ids.js";
import type { GenerationRequest } from "./inference.js";
import { defaultTenant } from "./request-class.js";

export const warmUpId = (pipeline: PipelineId): RequestId => requestId(`warm-up-${pipeline}`);

/** The first token through a new pipeline. */
export const warmUpLimitMs = 60_000;

export function warmUpRequest(pipeline: PipelineId): GenerationRequest {
  const id = warmUpId(pipeline);
  return {
    id,
    logId: id,
    endpoint: "completions",
    tenant: defaultTenant,
    class: "interactive",
    choices: [{ promptTokens: [0], seed: "0" }],
    sampling: {
      temperature: 0,
      topP: 1,
      topK: 0,
      minP: 0,
      maxTokens: 1,
      minTokens: 0,
      ignoreEos: true,
      stop: [],
      stopTokenIds: [],
      includeStopInOutput: false,
      topLogprobs: -1,
      promptLogprobs: false,
    },
    text: { skipSpecialTokens: true, chatReply: false },
  };
}
