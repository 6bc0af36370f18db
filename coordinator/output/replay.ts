/**
 * Tokens that an earlier coordinator had decided, put through the output of a choice as if they had just been
 * drawn: text held back, half a character, counts and stop rules are then where they were.
 */
import type { GenerationRequest, RequestEvent, TokenIds } from "../inference.js";
import type { ChoiceOutput } from "./choice-output.js";
import type { ChoicePrompt } from "./choice-prompt.js";

/**
 * Whether decided tokens alone bring a request back to where it was. The logprobs of tokens and prompts are kept
 * nowhere, and a prompt with several blanks changes while it is answered: such requests begin anew.
 */
export function canReplay({ sampling, choices }: GenerationRequest): boolean {
  const isScored = sampling.topLogprobs >= 0 || sampling.promptLogprobs;
  return !isScored && choices.every(({ context }) => (context?.remainingMasks.length ?? 0) === 0);
}

export interface Replay {
  /** All tokens before the end in one event. */
  events: RequestEvent[];
  /** The tokens that counted: those behind the end of the choice do not. */
  generated: number[];
}

/** @param output Of a choice that has had no token yet. */
export function replay(output: ChoiceOutput, prompt: ChoicePrompt, decided: TokenIds): Replay {
  const generated: number[] = [];
  const events: RequestEvent[] = [];
  let last: Extract<RequestEvent, { type: "tokens" }> | null = null;
  for (const token of decided) {
    generated.push(token);
    for (const event of output.push({ token, logprob: 0, top: [] })) {
      for (const told of prompt.events(event)) {
        if (told.type === "tokens" && last !== null) {
          last.text += told.text;
          last.tokens.push(...told.tokens);
          continue;
        }
        if (told.type === "tokens") last = told;
        events.push(told);
        if (told.type === "finish") return { events, generated };
      }
    }
  }
  return { events, generated };
}
