/**
 * Prompts with blanks, for models that read their context from both sides and fill what is missing. The
 * names of the family's masks within the text become those tokens; all other text stays text.
 */
import type { FillFacts } from "../../models/card.js";
import type { PromptPart } from "./chat-message.js";
import { trimEnd } from "./reply.js";

/** What the text becomes, up to the token that the reply begins behind. */
export function fillParts(text: string, fill: FillFacts): PromptPart[] {
  const names = fill.masks.map((name) => name.replaceAll(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  // Every second part is a mask.
  const pieces = text.split(new RegExp(`(${names.join("|")})`));
  if (pieces.length === 1) pieces.push(fill.append, "");
  const parts: PromptPart[] = pieces.map((piece, index) => {
    if (index % 2 === 1) return { token: piece };
    return { text: fill.stripsBeforeMask && index < pieces.length - 1 ? trimEnd(piece) : piece };
  });
  if (pieces.at(-1) !== "" && fill.endWhenNoMaskAtEnd !== null)
    parts.push({ token: fill.endWhenNoMaskAtEnd });
  return [...parts, { token: fill.start }];
}
