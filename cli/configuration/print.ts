/** What --print-config prints: a file for --config, in which a comment behind each value says where it came from. */
import { stringify } from "yaml";

export interface Setting {
  /** The flag without its dashes. */
  key: string;
  /** As a command line would have them; none: it is not set. */
  texts: string[];
  /** Can be given several times. */
  isList: boolean;
  origin: string;
}

export function formatConfiguration(section: string, settings: readonly Setting[]): string {
  const lines = settings.map((setting) => {
    const { key, texts, isList, origin } = setting;
    if (texts.length === 0) return `  # ${key}: ${origin}`;
    const shown = texts.map(withoutPassword);
    const hidden = shown.some((text, index) => text !== texts[index]);
    const value = isList ? `[${shown.map(quoted).join(", ")}]` : scalar(shown[0]!);
    return `  ${key}: ${value} # ${origin}${hidden ? ", its password is not shown" : ""}`;
  });
  return `${section}:\n${lines.join("\n")}\n`;
}

/** Of the URL of a Redis: who reads the output need not know it. */
function withoutPassword(text: string): string {
  if (!URL.canParse(text)) return text;
  const url = new URL(text);
  if (url.password === "") return text;
  url.password = "";
  return url.href;
}

/** What reads as a number or a boolean needs no quotes: it is taken as the text that it is. */
function scalar(text: string): string {
  if (/^(\d+(\.\d+)?|true|false)$/.test(text)) return text;
  const plain = stringify(text, { lineWidth: 0 }).trimEnd();
  return plain.includes("\n") ? quoted(text) : plain;
}

/** JSON's strings are YAML's too. */
function quoted(text: string): string {
  return JSON.stringify(text);
}
