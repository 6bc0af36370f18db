/**
 * The pipelines of the cluster, as far as sequences are concerned: which of them serve, what each has room
 * for, which one a sequence goes to, and who waits for whom. A state machine without socket or clock.
 */
import { type ErrorCode, RelayError } from "../common/errors.js";
import type { PipelineId } from "../common/ids.js";
import { kvBlockSize, maxContextRows } from "../common/limits.js";
import type { ActiveChoice } from "./active-request.js";
import type { PromptContext, TokenIds } from "./inference.js";
import { mostTokens } from "./output/choice-prompt.js";
import { bestRoute } from "./routing.js";
import { blocksFor } from "./scheduler/scheduler.js";
import type { Serving } from "./serving.js";
import { isSuspicious, Suspects } from "./suspects.js";

/** Since when and why a pipeline that was ready is gone. */
export interface Loss {
  reason: ErrorCode;
  sinceMs: number;
}

interface Slot {
  /** While it is formed. */
  serving: Serving | null;
  /** KV blocks of the pipeline that is or was formed last; 0 before the first. */
  blockCount: number;
  /** Until its first token after the loss. */
  loss: Loss | null;
}

/** What decides how many KV blocks a sequence takes at most. */
export interface Demand {
  prompt: TokenIds;
  context: PromptContext | null;
  maxTokens: number;
}

export class Pipelines {
  readonly #slots: readonly Slot[];
  readonly #prefixLength: number;
  readonly #mayGrow: (pipeline: PipelineId) => boolean;
  readonly #suspects = new Suspects<ActiveChoice>();

  /**
   * @param prefixLength KV slots in front of every sequence.
   * @param mayGrow Whether a pipeline would get more stages if it had nothing to do.
   */
  constructor(count: number, prefixLength: number, mayGrow: (pipeline: PipelineId) => boolean) {
    this.#slots = Array.from({ length: count }, () => ({ serving: null, blockCount: 0, loss: null }));
    this.#prefixLength = prefixLength;
    this.#mayGrow = mayGrow;
  }

  /** Those that are formed. */
  get formed(): Serving[] {
    return this.#slots.flatMap(({ serving }) => serving ?? []);
  }

  /** One has answered its first token, and serves. */
  get ready(): boolean {
    return this.#slots.some(({ serving }) => serving?.ready);
  }

  /** None serves, but one did. */
  get missed(): boolean {
    return !this.ready && this.#slots.some(({ loss }) => loss !== null);
  }

  /** Tokens that the KV cache of the largest one holds; no bound while none was formed yet. */
  get sequenceTokens(): number {
    const blocks = Math.max(...this.#slots.map(({ blockCount }) => blockCount));
    return blocks === 0 ? Number.POSITIVE_INFINITY : blocks * kvBlockSize - this.#prefixLength;
  }

  of(pipeline: number): Serving | null {
    return this.#slots[pipeline]?.serving ?? null;
  }

  add(serving: Serving): void {
    const slot = this.#slots[serving.id]!;
    slot.serving = serving;
    slot.blockCount = serving.blockCount;
  }

  /** @returns The loss that the first token of this pipeline ends; null when it is the first one ever. */
  warmedUp(serving: Serving): Loss | null {
    serving.warmedUp();
    const slot = this.#slots[serving.id]!;
    const { loss } = slot;
    slot.loss = null;
    return loss;
  }

  /**
   * A pipeline is gone: its sequences wait for one from now on.
   * @param choices All that have not ended.
   * @returns Those that it had, and which of them must be set aside since they seem to be what kills pipelines.
   */
  lost(
    pipeline: PipelineId,
    reason: ErrorCode,
    choices: Iterable<ActiveChoice>,
    nowMs: number,
  ): { interrupted: ActiveChoice[]; poisonous: ActiveChoice[] } {
    const slot = this.#slots[pipeline]!;
    const { serving } = slot;
    if (serving === null) return { interrupted: [], poisonous: [] };
    if (serving.ready) slot.loss ??= { reason, sinceMs: nowMs };
    slot.serving = null;
    const travelling = serving.sequencesInFlight();
    serving.end();
    const all = [...choices];
    const interrupted = all.filter((choice) => choice.serving === serving);
    for (const choice of interrupted) choice.serving = null;
    const unserved = all.filter((choice) => choice.serving === null);
    const poisonous = this.#suspects.pipelineLost(pipeline, unserved, ({ sequence }) =>
      travelling.has(sequence),
    );
    return { interrupted, poisonous };
  }

  /** @throws RelayError context_length_exceeded for what no pipeline could ever run. */
  requireRoom(demand: Demand): void {
    const { prompt, context } = demand;
    const most = mostTokens(prompt, context, demand.maxTokens);
    const extra = { n_prompt_tokens: prompt.length };
    const slots = this.#slots.filter(({ serving, loss }) => serving !== null || loss !== null);
    const largest = Math.max(...slots.map(({ blockCount }) => blockCount));
    if (this.#blocksOf(demand) > largest) {
      const message =
        `${prompt.length} prompt tokens and up to ${most.reply} new ones need more KV blocks ` +
        `than the cluster has (${largest})`;
      throw new RelayError("context_length_exceeded", message, { extra });
    }
    if (most.context > maxContextRows) {
      const message =
        `a context of ${most.context} tokens, the blanks filled before included, is longer than ` +
        `the ${maxContextRows} that one step reads`;
      throw new RelayError("context_length_exceeded", message, { extra });
    }
  }

  /**
   * Gives a choice to a pipeline, from the beginning of its sequence; it waits when none that serves has room
   * for it and takes others now.
   * @throws RelayError context_length_exceeded for what no pipeline could ever run.
   */
  place(choice: ActiveChoice): void {
    const demand = demandOf(choice);
    this.requireRoom(demand);
    const suspicious = isSuspicious(choice);
    const untried = this.#roomy(demand).filter(
      ({ id }) => id !== choice.distrusted && !this.#suspects.isTrying(id),
    );
    // One that waits for its end to grow gets nothing new while others serve.
    const whole = untried.filter(({ id }) => !this.#mayGrow(id));
    const open = whole.length > 0 ? whole : untried;
    // What may kill its pipeline goes where it is beside the fewest.
    const choose = () => bestRoute(open.map((serving) => serving.candidate(choice, !suspicious)))?.serving;
    const serving = open.length > 1 ? choose() : open[0];
    if (serving === undefined) return;
    if (suspicious) this.#suspects.try(serving.id, choice);
    choice.serving = serving;
    serving.submit(choice);
  }

  /** The order in which those that wait are placed: suspicious ones first, each into a pipeline that is still new. */
  inOrder(waiting: readonly ActiveChoice[]): ActiveChoice[] {
    return [...waiting.filter(isSuspicious), ...waiting.filter((choice) => !isSuspicious(choice))];
  }

  /** The choice has got on, or is over. @returns Whether others that wait may be placed now. */
  cleared(choice: ActiveChoice): boolean {
    return this.#suspects.cleared(choice);
  }

  /** @returns A loss, and of which pipeline, when all lost pipelines stay away for longer than this; else null. */
  awayFor(limitMs: number, nowMs: number): { pipeline: number; loss: Loss } | null {
    const losses = this.#slots.flatMap(({ loss }, pipeline) => (loss === null ? [] : { pipeline, loss }));
    if (losses.some(({ loss }) => nowMs - loss.sinceMs <= limitMs)) return null;
    return losses[0] ?? null;
  }

  /** Whether a pipeline that serves could run it. */
  hasRoomFor(choice: ActiveChoice): boolean {
    return this.#roomy(demandOf(choice)).length > 0;
  }

  /** Those that serve and could run it. */
  #roomy(demand: Demand): Serving[] {
    const blocks = this.#blocksOf(demand);
    return this.formed.filter((serving) => serving.ready && blocks <= serving.blockCount);
  }

  /** The last token drawn needs no slot. */
  #blocksOf({ prompt, context, maxTokens }: Demand): number {
    const { reply } = mostTokens(prompt, context, maxTokens);
    return blocksFor(this.#prefixLength + prompt.length + Math.max(0, reply - 1));
  }
}

function demandOf({ prompt, request }: ActiveChoice): Demand {
  const { maxTokens } = request.request.sampling;
  return { prompt: prompt.tokens, context: prompt.context, maxTokens };
}
