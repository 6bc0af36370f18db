/** The body of POST /v1/completions: from its fields to a call. */
import { RelayError } from "../../common/errors.js";
import { maxTopLogprobs } from "../../common/limits.js";
import type { ModelInfo, TokenIds } from "../inference.js";
import type { Encoder } from "../prompt/encoder.js";
import { promptContext } from "../prompt/prefix-boundary.js";
import { newRequestId, type ReadCall } from "./answer.js";
import type { CompletionAnswerOptions } from "./completion-answer.js";
import {
  type Body,
  booleanField,
  type Field,
  type Fields,
  integerField,
  invalid,
  readFields,
  readText,
  readTokenIds,
  type Values,
} from "./fields.js";
import { maxPrompts } from "./limits.js";
import type { ReadContext } from "./read-body.js";
import { checkContext, checkSampling, expandChoices, samplingFields, samplingParams } from "./sampling.js";
import { unknownFields } from "./strict.js";
import { harmlessFields, refuseUnsupported, unsupportedInCompletions } from "./unsupported.js";

const defaultMaxTokens = 16;
const promptForms = "a string, a list of strings, a list of token ids, or a list of such lists";

/** A prompt as sent: the text, or ids that are not yet held against the model. */
interface SentPrompt {
  content: string | unknown[];
  path: string;
}

export const promptField: Field<SentPrompt[]> = {
  schema: {
    oneOf: [
      { type: "string" },
      { type: "array", minItems: 1, maxItems: maxPrompts, items: { type: "string" } },
      { type: "array", minItems: 1, items: { type: "integer", minimum: 0 } },
      {
        type: "array",
        minItems: 1,
        maxItems: maxPrompts,
        items: { type: "array", minItems: 1, items: { type: "integer", minimum: 0 } },
      },
    ],
  },
  read(value, path) {
    if (typeof value === "string") return [{ content: readText(value, path), path }];
    if (!Array.isArray(value) || value.length === 0) throw invalid(path, value, promptForms);
    if (typeof value[0] === "number") return [{ content: value, path }];
    if (value.length > maxPrompts) throw invalid(path, value, `at most ${maxPrompts} prompts`);
    const wantsText = typeof value[0] === "string";
    return value.map((entry, i) => {
      const entryPath = `${path}[${i}]`;
      if (wantsText) return { content: readText(entry, entryPath), path: entryPath };
      if (!Array.isArray(entry) || entry.length === 0) throw invalid(entryPath, entry, "a list of token ids");
      return { content: entry, path: entryPath };
    });
  },
};

/** How the prompt is read: a prefix-LM reads it as a whole unless told otherwise. */
const attentionModeField: Field<"prefix" | "causal" | undefined> = {
  schema: { type: "string", enum: ["prefix", "causal"] },
  read(value, path) {
    if (value === undefined || value === null) return undefined;
    if (value === "prefix" || value === "causal") return value;
    throw invalid(path, value, '"prefix" or "causal"');
  },
};

export const completionFields = {
  prompt: promptField,
  ...samplingFields,
  max_tokens: integerField({ min: 0 }),
  echo: booleanField(false),
  logprobs: integerField({ min: 0, max: maxTopLogprobs }),
  best_of: integerField({ min: 1 }),
  add_special_tokens: booleanField(true),
  attention_mode: attentionModeField,
} satisfies Fields;

type CompletionValues = Values<typeof completionFields>;

const knownFields = new Set([
  ...Object.keys(completionFields),
  ...Object.keys(unsupportedInCompletions),
  ...harmlessFields,
]);

export async function readCompletion(
  body: Body,
  context: ReadContext,
): Promise<ReadCall<CompletionAnswerOptions>> {
  const { model, encoder } = context;
  const unknown = unknownFields(body, knownFields, context.strict);
  const values = readFields(completionFields, body);
  refuseUnsupported(body, unsupportedInCompletions);
  checkSampling(values, model);
  const n = values.n ?? 1;
  checkBestOf(values.best_of, n);
  const maxTokens = values.max_tokens ?? defaultMaxTokens;
  if (maxTokens === 0 && !values.echo) {
    throw new RelayError(
      "invalid_value",
      'max_tokens: 0 is out of range without "echo": true, expected 1 or more',
      {
        param: "max_tokens",
      },
    );
  }

  const isCausal = readsCausally(values.attention_mode, model);
  const prompts = await Promise.all(
    values.prompt.map((sent) => encode(context, sent, { ...values, isCausal })),
  );
  const contexts = prompts.map((tokens, i) => {
    if (model.prefixModel === null || isCausal) return undefined;
    return promptContext(tokens, model.prefixModel, values.prompt[i]!.path);
  });
  for (const [i, tokens] of prompts.entries()) {
    const blanks = 1 + (contexts[i]?.remainingMasks.length ?? 0);
    checkContext(tokens.length, maxTokens, model.contextLength, "max_tokens", blanks);
  }
  const echoedTexts = values.echo ? await echoes(context.encoder, values, prompts) : undefined;

  const { logprobs } = values;
  return {
    generation: {
      id: newRequestId("cmpl"),
      endpoint: "completions",
      choices: expandChoices(prompts, n, values.seed ?? context.seed, contexts),
      sampling: samplingParams(values, model, {
        maxTokens,
        topLogprobs: logprobs ?? -1,
        promptLogprobs: values.echo && logprobs !== undefined,
      }),
      ...(values.cache_salt === undefined ? {} : { cacheSalt: values.cache_salt }),
      text: { skipSpecialTokens: values.skip_special_tokens, chatReply: false },
    },
    n,
    stream: values.stream,
    streamOptions: values.stream_options,
    options: {
      logprobs: logprobs !== undefined,
      echoedTexts,
      choicesPerPrompt: n,
      tokenIds: values.return_token_ids || !encoder.available,
      promptTokenIds: values.return_token_ids || (values.echo && !encoder.available),
    },
    asTokenIds: values.return_tokens_as_token_ids,
    unknownFields: unknown,
  };
}

/** @throws RelayError unsupported_parameter for a mode that the model was not trained in. */
function readsCausally(mode: "prefix" | "causal" | undefined, { prefixModel }: ModelInfo): boolean {
  const isPrefixModel = prefixModel !== null;
  if (mode === undefined) return !isPrefixModel;
  const modes = isPrefixModel ? (prefixModel.causalPrefix ? ["prefix", "causal"] : ["prefix"]) : ["causal"];
  if (modes.includes(mode)) return mode === "causal";
  throw new RelayError(
    "unsupported_parameter",
    `attention_mode: "${mode}" is not a mode of this model, expected ${modes.map((name) => `"${name}"`).join(" or ")}`,
    { param: "attention_mode" },
  );
}

/** OpenAI generates best_of answers and keeps n; only the case where both are the same is served. */
function checkBestOf(bestOf: number | undefined, n: number): void {
  if (bestOf === undefined || bestOf === n) return;
  throw new RelayError(
    bestOf > n ? "unsupported_parameter" : "invalid_value",
    `best_of: ${bestOf} is ${bestOf > n ? "not supported" : "less than n"}, expected ${n}, the value of n`,
    { param: "best_of" },
  );
}

async function encode(
  { model, encoder }: ReadContext,
  sent: SentPrompt,
  { add_special_tokens: addSpecialTokens, isCausal }: { add_special_tokens: boolean; isCausal: boolean },
): Promise<TokenIds> {
  if (typeof sent.content !== "string") {
    return readTokenIds(sent.content, sent.path, model.tokenCount);
  }
  const prefix = (isCausal && addSpecialTokens && model.prefixModel?.causalPrefix) || null;
  const text = await encoder.encodeText(sent.content, addSpecialTokens && prefix === null);
  const tokens = prefix === null ? text : Int32Array.from([...prefix, ...text]);
  if (tokens.length === 0) {
    throw new RelayError("invalid_value", `${sent.path}: no tokens, expected at least one`, {
      param: sent.path,
    });
  }
  return tokens;
}

/** The prompts as text: as sent, or read back from ids; empty where no tokenizer can read them. */
function echoes(encoder: Encoder, values: CompletionValues, prompts: TokenIds[]): Promise<string[]> {
  return Promise.all(
    values.prompt.map(async ({ content }, i) => {
      if (typeof content === "string") return content;
      if (!encoder.available) return "";
      return encoder.decode(prompts[i] ?? [], { skipSpecialTokens: values.skip_special_tokens });
    }),
  );
}
