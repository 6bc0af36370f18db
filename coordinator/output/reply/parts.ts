/** What the readers of a reply have in common. */
import type { JsonCalls, PythonCalls, TaggedCalls } from "../../../models/card.js";

export type ReplyPart =
  | { kind: "reasoning" | "content"; text: string }
  /** `arguments` is a JSON object. */
  | { kind: "call"; name: string; arguments: string };

/** A tool as far as reading its calls needs to know it. */
export interface ToolSignature {
  name: string;
  /** Arguments that are texts: not to be read as JSON. */
  texts: string[];
  /** Those of them that may be null as well. */
  nullable: string[];
}

/** How a reply is to be read. Plain data. */
export interface ReplyRules {
  thinking: {
    begin: string;
    end: string;
    /** The prompt ends within a thought. */
    open: boolean;
  } | null;
  calls:
    | (TaggedCalls & { tools: ToolSignature[] })
    /** `segment` begins another part of the reply with a metadata line of its own. */
    | ((PythonCalls | JsonCalls) & { segment: string; tools: ToolSignature[] })
    | null;
}

export interface ReplyReader {
  push(text: string): ReplyPart[];
  /** What was held back; after it nothing may come. */
  finish(): ReplyPart[];
}

export function content(text: string): ReplyPart[] {
  return text === "" ? [] : [{ kind: "content", text }];
}

/** Length of the longest end of the text with which `mark` begins, the whole mark excluded. */
export function begunLength(text: string, mark: string): number {
  let length = Math.min(mark.length - 1, text.length);
  while (!mark.startsWith(text.slice(text.length - length))) length--;
  return length;
}
