/**
 * A model whose every token depends on all tokens before it, through keys and values in all layers, and on nothing
 * else. What a layer stores for a row is read by later rows as attention reads it: a slot that holds something
 * else, or is left out, changes the tokens that follow. It likes to repeat itself, so that guesses pay.
 */
import type { PromptContext, TokenIds } from "../../coordinator/inference.js";
import { nextBlank } from "../../coordinator/prompt/prefix-boundary.js";

export const layerCount = 4;
export const vocabulary = 40;
/** The model's own. */
export const stopToken = 9;
/** What a reply repeats lies so many tokens back. */
const period = 3;

export const mix = (value: number, salt: number): number => {
  let mixed = Math.imul(value ^ Math.imul(salt + 1, 0x9e3779b1), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  return (mixed ^ (mixed >>> 16)) >>> 0;
};

/** Attention over the stored values, one after the other. */
export const attentionStart = (layer: number, contextLength: number, maskPosition: number): number =>
  mix(layer, contextLength * 4_096 + maskPosition + 2);
export const attend = (state: number, stored: number): number => Math.imul(state ^ stored, 0x01000193) >>> 0;
export const embed = (token: number): number => mix(token, 77);
export const store = (row: number, layer: number): number => mix(row, layer + 101);
export const leave = (row: number, state: number): number => mix(row ^ state, 7);

export interface Drawing {
  temperature: number;
  seedLow: number;
  seedHigh: number;
  banned: readonly number[];
}

/**
 * @param row What the last layer gives for the last token.
 * @param length Tokens up to there.
 * @param tokenAt The token at a position.
 */
export function draw(
  row: number,
  length: number,
  tokenAt: (position: number) => number,
  { temperature, seedLow, seedHigh, banned }: Drawing,
): number {
  const hash = temperature > 0 ? mix(row ^ mix(seedLow, length), seedHigh) : row;
  const repeats = length >= period && hash % 16 < 11;
  let token = repeats ? tokenAt(length - period) : (hash >>> 4) % vocabulary;
  while (banned.includes(token)) token = (token + 1) % vocabulary;
  return token;
}

/** What one choice answers. */
export interface Expected {
  /** As they are given out: without one that ends a blank or the answer by itself. */
  tokens: number[];
  reason: "stop" | "length";
  text: string;
}

export interface Rules {
  maxTokens: number;
  minTokens: number;
  temperature: number;
  seed: string;
  ignoreEos: boolean;
  stopTokenIds: readonly number[];
  stop: readonly string[];
}

export const textOf = (token: number): string => `t${token} `;

/** @returns The answer of a choice, computed alone and from its beginning. */
export function expectedAnswer(prompt: TokenIds, context: PromptContext | null, rules: Rules): Expected {
  const first = continued(prompt, context, rules);
  if (context === null || context.remainingMasks.length === 0) return first;
  const next = nextBlank(prompt, context, first.tokens);
  const rest = expectedAnswer(next.promptTokens, next.context, rules);
  return { ...rest, tokens: [...first.tokens, ...rest.tokens], text: first.text + rest.text };
}

function continued(prompt: TokenIds, context: PromptContext | null, rules: Rules): Expected {
  const { maxTokens, minTokens, ignoreEos, stopTokenIds, stop } = rules;
  const seed = BigInt.asUintN(64, BigInt(rules.seed));
  const all = Array.from(prompt);
  const computed = new Computed(context);
  const tokens: number[] = [];
  for (;;) {
    const row = computed.rowAfter(all);
    const banned = tokens.length < minTokens ? [stopToken, ...stopTokenIds] : [];
    const token = draw(row, all.length, (position) => all[position]!, {
      temperature: rules.temperature,
      seedLow: Number(seed & 0xffff_ffffn),
      seedHigh: Number(seed >> 32n),
      banned,
    });
    const mayStop = tokens.length + 1 > minTokens;
    const isStop = (!ignoreEos && token === stopToken) || stopTokenIds.includes(token);
    if (mayStop && isStop) return { tokens, reason: "stop", text: tokens.map(textOf).join("") };
    tokens.push(token);
    all.push(token);
    const text = tokens.map(textOf).join("");
    const ends = stop.flatMap((words) => (text.includes(words) ? [text.indexOf(words)] : []));
    if (ends.length > 0) return { tokens, reason: "stop", text: text.slice(0, Math.min(...ends)) };
    if (tokens.length >= maxTokens) return { tokens, reason: "length", text };
  }
}

/** One sequence's keys and values, as sums over them. */
class Computed {
  readonly #states: number[];
  readonly #contextLength: number;
  #length = 0;

  constructor(context: PromptContext | null) {
    this.#contextLength = context?.length ?? 0;
    const mask = context?.constantPosition === true ? context.mask : -1;
    this.#states = Array.from({ length: layerCount }, (_, layer) =>
      attentionStart(layer, this.#contextLength, mask),
    );
  }

  /** What the last layer gives for the last of the tokens, which go on where they ended before. */
  rowAfter(tokens: readonly number[]): number {
    if (this.#length < this.#contextLength) this.#readContext(tokens);
    let row = 0;
    for (; this.#length < tokens.length; this.#length++) {
      row = embed(tokens[this.#length]!);
      for (let layer = 0; layer < layerCount; layer++) {
        this.#states[layer] = attend(this.#states[layer]!, store(row, layer));
        row = leave(row, this.#states[layer]!);
      }
    }
    return row;
  }

  #readContext(tokens: readonly number[]): void {
    let rows = tokens.slice(0, this.#contextLength).map(embed);
    for (let layer = 0; layer < layerCount; layer++) {
      for (const row of rows) this.#states[layer] = attend(this.#states[layer]!, store(row, layer));
      rows = rows.map((row) => leave(row, this.#states[layer]!));
    }
    this.#length = this.#contextLength;
  }
}
