/**
 * Fields that other servers obey and this one does not, though they change the answer. Each is accepted
 * with the value that changes nothing and refused with any other: a field silently ignored gives a wrong
 * answer that looks right.
 */
import { RelayError } from "../../common/errors.js";
import { type Body, show } from "./fields.js";

interface Unsupported {
  /** Whether the value asks for nothing. Null is taken as absent except where a number is expected. */
  harmless: (value: unknown) => boolean;
  /** What may be sent, for the message. */
  accepted: string;
}

const onlyAbsent: Unsupported = { harmless: (value) => value === null, accepted: "the field left out" };
const only = (neutral: unknown): Unsupported => ({
  harmless: (value) => value === null || value === neutral,
  accepted: show(neutral),
});
/** A number: null may be somebody's NaN, so it is not taken as absent. */
const onlyNumber = (neutral: number): Unsupported => ({
  harmless: (value) => value === neutral,
  accepted: String(neutral),
});
const onlyEmpty: Unsupported = {
  harmless: (value) => value === null || (typeof value === "object" && Object.keys(value).length === 0),
  accepted: "an empty one",
};

const unsupportedEverywhere: Record<string, Unsupported> = {
  repetition_penalty: onlyNumber(1),
  presence_penalty: onlyNumber(0),
  frequency_penalty: onlyNumber(0),
  length_penalty: onlyNumber(1),
  logit_bias: onlyEmpty,
  use_beam_search: only(false),
  prompt_logprobs: onlyAbsent,
  truncate_prompt_tokens: onlyAbsent,
  prompt_embeds: onlyAbsent,
  allowed_token_ids: onlyAbsent,
  bad_words: onlyEmpty,
  logits_processors: onlyEmpty,
  vllm_xargs: onlyEmpty,
  spaces_between_special_tokens: only(true),
  response_format: {
    harmless: (value) => value === null || (typeof value === "object" && (value as Body).type === "text"),
    accepted: '{"type":"text"}',
  },
  structured_outputs: onlyEmpty,
  guided_json: onlyAbsent,
  guided_regex: onlyAbsent,
  guided_choice: onlyAbsent,
  guided_grammar: onlyAbsent,
};

export const unsupportedInChat: Record<string, Unsupported> = {
  ...unsupportedEverywhere,
  attention_mode: onlyAbsent,
  functions: onlyEmpty,
  function_call: {
    harmless: (value) => value === null || value === "none" || value === "auto",
    accepted: '"none"',
  },
  reasoning_effort: onlyAbsent,
  chat_template: onlyAbsent,
  continue_final_message: only(false),
  add_special_tokens: only(false),
  documents: onlyEmpty,
  echo: only(false),
  modalities: {
    harmless: (value) =>
      value === null || (Array.isArray(value) && value.length === 1 && value[0] === "text"),
    accepted: '["text"]',
  },
  audio: onlyAbsent,
};

export const unsupportedInCompletions: Record<string, Unsupported> = {
  ...unsupportedEverywhere,
  suffix: only(""),
};

/** Fields that change nothing of an answer's text; accepted so that clients need not be rewritten. */
export const harmlessFields = [
  "user",
  "metadata",
  "store",
  "priority",
  "request_id",
  "service_tier",
  "safety_identifier",
  "prompt_cache_key",
] as const;

/** @throws RelayError unsupported_parameter, naming the field and what may be sent. */
export function refuseUnsupported(body: Body, table: Record<string, Unsupported>): void {
  for (const [name, rule] of Object.entries(table)) {
    if (Object.hasOwn(body, name) && !rule.harmless(body[name])) {
      throw new RelayError(
        "unsupported_parameter",
        `${name}: ${show(body[name])} is not supported, expected ${rule.accepted}`,
        { param: name },
      );
    }
  }
}
