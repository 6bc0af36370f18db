/** Special tokens and texts in the making: a card's own text may name special tokens, a client's never. */
import type { ToolsText } from "../../models/card.js";
import type { PromptPart, Tool } from "./chat-message.js";
import { pythonJson } from "./python-text.js";

/** Finds the longest special name at each place; null without names. */
export function namePattern(names: readonly string[]): RegExp | null {
  if (names.length === 0) return null;
  const longestFirst = [...names].sort((a, b) => b.length - a.length);
  return new RegExp(`(${longestFirst.map(escapeRegExp).join("|")})`);
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
}

/** Texts that follow one another are one text, as if all had been rendered first and encoded then. */
export class JoinedParts {
  readonly parts: PromptPart[] = [];
  readonly #names: RegExp | null;

  /** @param names See namePattern. */
  constructor(names: RegExp | null) {
    this.#names = names;
  }

  /** A text of the card's: names of special tokens in it are these tokens. */
  add(text: string): this {
    // The pattern is one group, so that names stand at the odd places.
    const pieces = this.#names === null ? [text] : text.split(this.#names);
    for (const [index, piece] of pieces.entries()) {
      if (index % 2 === 1) this.parts.push({ token: piece });
      else this.addText(piece);
    }
    return this;
  }

  /** A text of the client's. */
  addText(text: string): this {
    if (text === "") return this;
    const last = this.parts.at(-1);
    if (last !== undefined && "text" in last) last.text += text;
    else this.parts.push({ text });
    return this;
  }
}

/** The description of tools, the card's pieces and the client's in turns; the first is the card's. */
export function toolsPieces(format: ToolsText, tools: readonly Tool[]): string[] {
  const functions = tools.map((tool) => tool.function);
  const filled = (text: string, slots: Record<string, () => string>): string[] =>
    text.split(/\{\{(\w+)\}\}/).map((piece, index) => (index % 2 === 0 ? piece : (slots[piece]?.() ?? "")));
  const sections = [
    filled(format.before, { functions: () => pythonJson(functions, format.indent) }),
    ...tools.map((tool) =>
      filled(format.each, {
        name: () => tool.function.name,
        function: () => pythonJson(tool.function, format.indent),
        tool: () => pythonJson(tool, format.indent),
      }),
    ),
    [format.after],
  ];
  // Each section begins and ends with a piece of the card's: where two meet an empty one of the client's goes.
  return sections.flatMap((pieces, index) => (index === 0 ? pieces : ["", ...pieces]));
}
