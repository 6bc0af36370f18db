/** The fields that chat and completions share, and what becomes of them: SamplingParams and seeds. */
import { RelayError } from "../../common/errors.js";
import type { GenerationRequest, ModelInfo, PromptContext, SamplingParams, TokenIds } from "../inference.js";
import {
  asObject,
  booleanField,
  type Field,
  integerField,
  invalid,
  numberField,
  readText,
  readTokenIds,
  textField,
  type Values,
} from "./fields.js";
import {
  maxChoices,
  maxChoicesPerPrompt,
  maxPromptTokensPerCall,
  maxStopStringLength,
  maxStopStrings,
  maxStopTokenIds,
} from "./limits.js";
import { deriveSeed, drawSeed, seedField } from "./seeds.js";

export interface StreamOptions {
  includeUsage: boolean;
  continuousUsage: boolean;
}

const stopField: Field<string[]> = {
  schema: {
    oneOf: [
      { type: "string", minLength: 1 },
      { type: "array", maxItems: maxStopStrings, items: { type: "string", minLength: 1 } },
    ],
  },
  read(value, path) {
    if (value === undefined || value === null) return [];
    if (typeof value !== "string" && !Array.isArray(value)) {
      throw invalid(path, value, "a string or a list of strings");
    }
    const list: unknown[] = typeof value === "string" ? [value] : value;
    if (list.length > maxStopStrings) {
      throw invalid(path, value, `at most ${maxStopStrings} stop strings`);
    }
    return list.map((entry, i) => {
      const entryPath = typeof value === "string" ? path : `${path}[${i}]`;
      const text = readText(entry, entryPath);
      if (text === "" || text.length > maxStopStringLength) {
        throw new RelayError(
          "invalid_value",
          `${entryPath}: ${text === "" ? '""' : `a string of ${text.length} characters`} cannot stop, ` +
            `expected 1 to ${maxStopStringLength} characters`,
          { param: entryPath },
        );
      }
      return text;
    });
  },
};

const stopTokenIdsField: Field<unknown[]> = {
  schema: { type: "array", maxItems: maxStopTokenIds, items: { type: "integer", minimum: 0 } },
  read(value, path) {
    if (value === undefined || value === null) return [];
    if (!Array.isArray(value) || value.length > maxStopTokenIds) {
      throw invalid(path, value, `a list of at most ${maxStopTokenIds} token ids`);
    }
    return value;
  },
};

const streamOptionsField: Field<StreamOptions | undefined> = {
  schema: {
    type: "object",
    properties: { include_usage: { type: "boolean" }, continuous_usage_stats: { type: "boolean" } },
  },
  read(value, path) {
    if (value === undefined || value === null) return undefined;
    const options = asObject(value, path);
    const flag = booleanField(false);
    return {
      includeUsage: flag.read(options.include_usage, `${path}.include_usage`),
      continuousUsage: flag.read(options.continuous_usage_stats, `${path}.continuous_usage_stats`),
    };
  },
};

/** 0 and -1 both switch it off, as in llama.cpp and vLLM. */
const topKField = {
  schema: { type: "integer", minimum: -1 },
  read(value: unknown, path: string) {
    if (value === null) throw invalid(path, value, "an integer from -1");
    return integerField({ min: -1 }).read(value, path);
  },
} satisfies Field<number | undefined>;

export const samplingFields = {
  model: textField,
  temperature: numberField({ min: 0, max: 2 }),
  top_p: numberField({ min: 0, max: 1, aboveMin: true }),
  top_k: topKField,
  min_p: numberField({ min: 0, max: 1 }),
  seed: seedField,
  cache_salt: textField,
  n: integerField({ min: 1, max: maxChoicesPerPrompt }),
  stop: stopField,
  stop_token_ids: stopTokenIdsField,
  include_stop_str_in_output: booleanField(false),
  ignore_eos: booleanField(false),
  min_tokens: integerField({ min: 0 }),
  skip_special_tokens: booleanField(true),
  return_tokens_as_token_ids: booleanField(false),
  return_token_ids: booleanField(false),
  stream: booleanField(false),
  stream_options: streamOptionsField,
};

export type SamplingValues = Values<typeof samplingFields>;

/** What depends on more than one field or on the model. */
export function checkSampling(values: SamplingValues, model: ModelInfo): void {
  if (values.model !== undefined && values.model !== "default" && values.model !== model.id) {
    throw modelNotFound(values.model, model);
  }
  readTokenIds(values.stop_token_ids, "stop_token_ids", model.tokenCount);
  if (values.stream_options !== undefined && !values.stream) {
    throw new RelayError("invalid_value", 'stream_options: given without "stream": true, expected none', {
      param: "stream_options",
    });
  }
}

export function modelNotFound(id: string, model: ModelInfo): RelayError {
  const shown = id.length > 100 ? `${id.slice(0, 100)}...` : id;
  return new RelayError("model_not_found", `the model "${shown}" is not served here, "${model.id}" is`, {
    param: "model",
  });
}

/**
 * @param blanks That are filled one after the other, each within maxTokens.
 * @throws RelayError context_length_exceeded, with the figures that clients parse.
 */
export function checkContext(
  promptTokens: number,
  maxTokens: number,
  contextLength: number,
  param: string,
  blanks = 1,
): void {
  if (promptTokens + blanks * maxTokens <= contextLength) return;
  const each = blanks === 1 ? "" : ` for each of ${blanks} blanks`;
  const message =
    promptTokens >= contextLength
      ? `the prompt has ${promptTokens} tokens, the context holds ${contextLength} with the answer`
      : `the prompt has ${promptTokens} tokens and ${param} is ${maxTokens}${each}, together more than the ` +
        `context of ${contextLength} tokens`;
  throw new RelayError("context_length_exceeded", message, {
    param,
    extra: { n_prompt_tokens: promptTokens, n_ctx: contextLength },
  });
}

export function samplingParams(
  values: SamplingValues,
  model: ModelInfo,
  endpoint: Pick<SamplingParams, "maxTokens" | "topLogprobs" | "promptLogprobs">,
): SamplingParams {
  const minTokens = values.min_tokens ?? 0;
  if (minTokens > endpoint.maxTokens) {
    throw new RelayError(
      "invalid_value",
      `min_tokens: ${minTokens} is more than the ${endpoint.maxTokens} tokens that may be generated, ` +
        `expected an integer from 0 to ${endpoint.maxTokens}`,
      { param: "min_tokens" },
    );
  }
  const topK = values.top_k ?? 0;
  return {
    temperature: values.temperature ?? model.defaults.temperature,
    topP: values.top_p ?? model.defaults.topP,
    // Keeping every token is the same as not looking.
    topK: topK <= 0 || topK >= model.tokenCount ? 0 : topK,
    minP: values.min_p ?? 0,
    minTokens,
    ignoreEos: values.ignore_eos,
    stop: values.stop,
    stopTokenIds: values.stop_token_ids as number[],
    includeStopInOutput: values.include_stop_str_in_output,
    ...endpoint,
  };
}

/**
 * Choices in the order of their index, prompt * n + j. With a seed, each prompt is answered as if it had
 * been sent alone; without one, each prompt gets its own draw.
 * @param contexts Of the prompts of a prefix-LM.
 */
export function expandChoices(
  prompts: readonly TokenIds[],
  n: number,
  seed: bigint | undefined,
  contexts: readonly (PromptContext | undefined)[] = [],
): GenerationRequest["choices"] {
  if (prompts.length * n > maxChoices) {
    throw new RelayError(
      "invalid_value",
      `n: ${prompts.length} prompts with ${n} choices each, expected at most ${maxChoices} choices in all`,
      { param: "n" },
    );
  }
  const total = n * prompts.reduce((sum, tokens) => sum + tokens.length, 0);
  if (total > maxPromptTokensPerCall) {
    throw new RelayError(
      "invalid_value",
      `n: ${n} copies of the prompts hold ${total} tokens, expected at most ${maxPromptTokensPerCall}`,
      { param: "n" },
    );
  }
  return prompts.flatMap((promptTokens, i) => {
    const first = seed ?? drawSeed();
    const context = contexts[i];
    const prompt = context === undefined ? { promptTokens } : { promptTokens, context };
    return Array.from({ length: n }, (_, j) => ({ ...prompt, seed: deriveSeed(first, j).toString() }));
  });
}
