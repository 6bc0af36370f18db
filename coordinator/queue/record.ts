/**
 * A request as the queue and the ledger hold it: JSON, in which each prompt stands once, as the bytes of
 * its ids in base64. As lists of numbers, once per choice, a long one took longer to write and to read
 * than the coordinator may stand still.
 */
import { bytesFromInt32, int32FromBytes } from "../../common/bytes.js";
import { requestId } from "../../common/ids.js";
import type { GenerationRequest, PromptContext, TokenIds } from "../inference.js";

export interface RequestRecord extends Omit<GenerationRequest, "choices"> {
  /** Little-endian int32 in base64. */
  prompts: string[];
  choices: {
    /** Index into prompts. */
    prompt: number;
    context?: PromptContext;
    seed: string;
  }[];
}

export function toRecord(request: GenerationRequest): RequestRecord {
  const indices = new Map<TokenIds, number>();
  const choices = request.choices.map(({ promptTokens, ...others }) => {
    const prompt = indices.get(promptTokens) ?? indices.size;
    indices.set(promptTokens, prompt);
    return { prompt, ...others };
  });
  const prompts = Array.from(indices.keys(), (tokens) => bytesFromInt32(tokens).toString("base64"));
  return { ...request, prompts, choices };
}

export function fromRecord({ prompts, choices, ...rest }: RequestRecord): GenerationRequest {
  const tokens = prompts.map((text) => int32FromBytes(Buffer.from(text, "base64")));
  return {
    ...rest,
    id: requestId(rest.id),
    choices: choices.map(({ prompt, ...others }) => ({ promptTokens: tokens[prompt]!, ...others })),
  };
}
