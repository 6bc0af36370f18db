/** Who asks for what, and when: requests from a seed. */
import type { RequestClass } from "../../coordinator/request-class.js";
import type { Random } from "../random.js";

/** A number of tokens: always the same, between two bounds, or exponentially distributed around a mean. */
export type Length =
  | { kind: "fixed"; tokens: number }
  | { kind: "uniform"; least: number; most: number }
  | { kind: "exponential"; mean: number };

export interface Ask {
  promptTokens: number;
  replyTokens: number;
  class: RequestClass;
}

/** open: they come at a rate, whatever the answers do. closed: so many clients each ask again when answered. */
export type Arrivals = { kind: "open"; perSecond: number } | { kind: "closed"; clients: number };

export interface LoadPart {
  arrivals: Arrivals;
  requests: number;
  prompt: Length;
  reply: Length;
  /** Share of the requests that are interactive; the others are batch. */
  interactiveShare: number;
  /** Sizes that are known, in order, as many as `requests`; null: as `reply` says. Absent: all are drawn. */
  sizes?: readonly { promptTokens: number; replyTokens: number | null }[];
  /** It goes on as long as another part does: nobody waits for its last request. */
  endless?: boolean;
}

export function drawLength(length: Length, random: Random): number {
  switch (length.kind) {
    case "fixed":
      return length.tokens;
    case "uniform":
      return random.integer(length.least, length.most);
    case "exponential":
      return Math.max(1, Math.round(random.exponential(length.mean)));
  }
}

/** The next request of a part. @param contextLength Prompt and reply together have no more tokens than that. */
export function nextAsk(part: LoadPart, index: number, random: Random, contextLength: number): Ask {
  const { prompt, reply, interactiveShare, sizes } = part;
  const known = sizes?.[index];
  const promptTokens = Math.min(known?.promptTokens ?? drawLength(prompt, random), contextLength - 1);
  const replyTokens = known?.replyTokens ?? drawLength(reply, random);
  return {
    promptTokens,
    replyTokens: Math.max(1, Math.min(replyTokens, contextLength - promptTokens)),
    class: random.chance(interactiveShare) ? "interactive" : "batch",
  };
}
