/** What the core knows of a request that it has admitted and that has not ended. */
import type { PipelineId, RequestId, SequenceId } from "../common/ids.js";
import type { GenerationRequest, TokenIds, TokenLogprob } from "./inference.js";
import type { ChoiceOutput } from "./output/choice-output.js";
import type { ChoicePrompt } from "./output/choice-prompt.js";
import type { PromptScores } from "./output/prompt-scores.js";
import type { ContextRequest, RowRequests, SequenceSampling } from "./pipeline/pipeline.js";
import type { ScheduledSlice } from "./scheduler/context-slices.js";
import type { ScheduledRows } from "./scheduler/scheduled-step.js";
import type { Serving } from "./serving.js";
import type { Conduct } from "./suspects.js";

export interface ActiveRequest {
  request: GenerationRequest;
  /** Choices not finished yet. */
  open: Map<SequenceId, ActiveChoice>;
  /** Prompts that several of its choices have: each is one array. */
  sharedPrompts: ReadonlySet<TokenIds>;
  /** Rows of it have been sent. */
  started: boolean;
  /** It takes a place of those that intake gives out. */
  counted: boolean;
}

export interface ActiveChoice extends Conduct {
  request: ActiveRequest;
  index: number;
  sequence: SequenceId;
  /** The pipeline that has it; null while it waits for one. */
  serving: Serving | null;
  output: ChoiceOutput;
  prompt: ChoicePrompt;
  /** A pipeline that computed a value for it that is not finite; null while none did. */
  distrusted: PipelineId | null;
  /** Decided since the prompt: with it all that a sequence is rebuilt from. At most maxTokens. */
  generated: number[];
  /** Tokens of the prompt that were not computed for it, because others had. */
  reused: number;
  /** Computed once more: its prompt was counted before. */
  again: boolean;
  sampling: SequenceSampling;
  /** Logprobs of the prompt, when asked for; null once all are there. */
  scores: PromptScores | null;
  /** All of them, until they are given out. */
  scored: (TokenLogprob | null)[] | null;
}

/** What the header says of a choice's rows beside their tokens. */
export function rowRequests(choice: ActiveChoice, { first, start, tokens }: ScheduledRows): RowRequests {
  return {
    requestId: first ? choice.request.request.logId : "",
    context: choice.prompt.context,
    sampling: choice.sampling,
    bannedTokens: choice.output.bannedTokens(choice.generated.length),
    // The row of prompt token i scores token i + 1; rows of generated tokens score nothing.
    scoreTargets: choice.scores?.targets(start, tokens.length) ?? [],
  };
}

/** The same of the rows behind those that are on their way; null while its stop tokens are banned from some of them. */
export function decodeRequests({ output, generated, prompt, sampling }: ActiveChoice): RowRequests | null {
  const bannedTokens = output.bannedTokens(generated.length + 1);
  if (bannedTokens.length > 0) return null;
  return { requestId: "", context: prompt.context, sampling, bannedTokens, scoreTargets: [] };
}

/** What the header says of a slice of a choice's context. */
export function contextRequest(choice: ActiveChoice, { first }: ScheduledSlice): ContextRequest {
  return { requestId: first ? choice.request.request.logId : "", context: choice.prompt.context! };
}

/** Under which a request is found in the logs of all processes, and in the client's answer. */
export function namesOf({ id, logId }: GenerationRequest): { requestId: string; completionId: RequestId } {
  return { requestId: logId, completionId: id };
}
