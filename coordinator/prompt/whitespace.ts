/** The marks for whitespace that icetk writes into a text before its normaliser could drop it. */
import type { WhitespaceMarks } from "../../models/card.js";

export function markWhitespace(text: string, marks: WhitespaceMarks | undefined): string {
  if (!marks) return text;
  let marked = text.replaceAll("\n", marks.newline);
  if (marks.tab !== undefined) marked = marked.replaceAll("\t", marks.tab);
  const { spaces } = marks;
  return spaces ? marked.replaceAll(/ {2,}/g, (run) => spacesMark(run.length, spaces)) : marked;
}

/** The longest marks first; a single space left over stays one. */
function spacesMark(count: number, { mark, longest }: { mark: string; longest: number }): string {
  const rest = count % longest;
  const last = rest < 2 ? " ".repeat(rest) : mark.replace("{n}", String(rest));
  return mark.replace("{n}", String(longest)).repeat(Math.floor(count / longest)) + last;
}

/**
 * What each mark stands for, when it is a token. The authors also turn a mark back that a model spells out of
 * other tokens (<, n, >); here that stays what it wrote.
 */
export function whitespaceOfMarks(marks: WhitespaceMarks | undefined): ReadonlyMap<string, string> {
  const texts = new Map<string, string>();
  if (!marks) return texts;
  texts.set(marks.newline, "\n");
  if (marks.tab !== undefined) texts.set(marks.tab, "\t");
  for (let count = 2; marks.spaces && count <= marks.spaces.longest; count++) {
    texts.set(marks.spaces.mark.replace("{n}", String(count)), " ".repeat(count));
  }
  return texts;
}
