/** The books of what was admitted and has not ended: requests by id, their choices by sequence. */
import { type RequestId, type SequenceId, sequenceId } from "../common/ids.js";
import type { ActiveChoice, ActiveRequest } from "./active-request.js";
import type { GenerationRequest } from "./inference.js";
import type { ChoiceOutput } from "./output/choice-output.js";
import { ChoicePrompt } from "./output/choice-prompt.js";
import { PromptScores } from "./output/prompt-scores.js";
import { sequenceSampling } from "./pipeline/pipeline.js";

export class ActiveRequests {
  readonly #requests = new Map<RequestId, ActiveRequest>();
  /** In the order in which their sequences began. */
  readonly #choices = new Map<SequenceId, ActiveChoice>();
  /** Over all pipelines and epochs: a sequence keeps its number when it is rebuilt. */
  #nextSequence = 1;

  get size(): number {
    return this.#requests.size;
  }

  get(id: RequestId): ActiveRequest | undefined {
    return this.#requests.get(id);
  }

  has(active: ActiveRequest): boolean {
    return this.#requests.get(active.request.id) === active;
  }

  choiceOf(sequence: SequenceId): ActiveChoice | undefined {
    return this.#choices.get(sequence);
  }

  choices(): ActiveChoice[] {
    return [...this.#choices.values()];
  }

  /** Those that no pipeline has. */
  unplaced(): ActiveChoice[] {
    return this.choices().filter(({ serving }) => serving === null);
  }

  /** Each of its choices is a sequence that no pipeline has yet. */
  add(
    request: GenerationRequest,
    newOutput: (index: number) => ChoiceOutput,
    counted: boolean,
  ): ActiveRequest {
    const { sampling } = request;
    const prompts = request.choices.map(({ promptTokens }) => promptTokens);
    const sharedPrompts = new Set(prompts.filter((tokens, index) => prompts[index - 1] === tokens));
    const active: ActiveRequest = { request, open: new Map(), sharedPrompts, started: false, counted };
    this.#requests.set(request.id, active);
    for (const [index, { promptTokens, context = null, seed }] of request.choices.entries()) {
      this.#open({
        request: active,
        index,
        sequence: sequenceId(this.#nextSequence++),
        serving: null,
        distrusted: null,
        deaths: 0,
        output: newOutput(index),
        prompt: new ChoicePrompt(index, promptTokens, context),
        generated: [],
        reused: 0,
        again: false,
        sampling: sequenceSampling(sampling, BigInt(seed)),
        scores: sampling.promptLogprobs ? new PromptScores(promptTokens, context) : null,
        scored: null,
      });
    }
    return active;
  }

  /** The choice goes on as another sequence, with nothing generated. */
  renew(choice: ActiveChoice, output: ChoiceOutput): void {
    this.drop(choice);
    choice.sequence = sequenceId(this.#nextSequence++);
    choice.generated = [];
    choice.output = output;
    this.#open(choice);
  }

  /** The choice is over. */
  drop(choice: ActiveChoice): void {
    choice.request.open.delete(choice.sequence);
    this.#choices.delete(choice.sequence);
  }

  /** The request is over, and its choices with it. */
  delete(active: ActiveRequest): void {
    for (const choice of [...active.open.values()]) this.drop(choice);
    this.#requests.delete(active.request.id);
  }

  #open(choice: ActiveChoice): void {
    choice.request.open.set(choice.sequence, choice);
    this.#choices.set(choice.sequence, choice);
  }
}
