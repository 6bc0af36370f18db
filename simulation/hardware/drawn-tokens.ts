/**
 * What the last stage of a simulated pipeline draws: ids without meaning. How often a guess holds is not a matter
 * of text here but of a stated probability, so replies are written with two letters: every pair of them has been
 * seen soon, and the lookup always finds a guess to make.
 */
import { int32FromBytes } from "../../common/bytes.js";
import type { SequenceResult__Output } from "../../proto/generated/glm/relay/internal/v1/SequenceResult.js";
import type { SequenceRows } from "../../proto/generated/glm/relay/internal/v1/SequenceRows.js";
import type { TokenResult__Output } from "../../proto/generated/glm/relay/internal/v1/TokenResult.js";

const none = Buffer.alloc(0);
const letters: readonly [TokenResult__Output, TokenResult__Output] = [letter(1), letter(2)];

function letter(token: number): TokenResult__Output {
  return { token, logprob: 0, rank: 1, topTokens: none, topLogprobs: none, finite: true };
}

export class DrawnTokens {
  readonly #seed: number;
  readonly #acceptance: number;

  /** @param acceptance Probability that the next token of a draft is the one that is drawn. */
  constructor(seed: number, acceptance: number) {
    this.#seed = seed;
    this.#acceptance = acceptance;
  }

  of(rows: SequenceRows): SequenceResult__Output {
    const { sequence = 0, validLength = 0, rowCount = 0, draftRows = 0 } = rows;
    if (rows.sampling == null) return { sequence, drawn: [], drawnPosition: 0, scores: [] };
    const first = validLength + rowCount - draftRows;
    const draft = draftRows === 0 ? [] : int32FromBytes(rows.tokenIds as Uint8Array).slice(-draftRows);
    const drawn: TokenResult__Output[] = [];
    for (let index = 0; index <= draftRows; index++) {
      const guess = draft[index];
      const chance = this.#chance(sequence, first + index);
      if (guess === undefined) {
        drawn.push(letters[chance < 0.5 ? 0 : 1]);
        break;
      }
      const holds = chance < this.#acceptance;
      drawn.push(letters[(guess === letters[0].token) === holds ? 0 : 1]);
      if (!holds) break;
    }
    return { sequence, drawn, drawnPosition: first, scores: [] };
  }

  /** 0 <= x < 1, the same for a position whoever travels with it. */
  #chance(sequence: number, position: number): number {
    let mixed = Math.imul(sequence ^ this.#seed, 0x9e3779b1) ^ Math.imul(position + 1, 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x2c1b3c6d);
    mixed = Math.imul(mixed ^ (mixed >>> 12), 0x297a2d39);
    return ((mixed ^ (mixed >>> 15)) >>> 0) / 2 ** 32;
  }
}
