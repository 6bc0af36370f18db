/** Values as Python writes them: json.dumps without ASCII escapes, and literals in source code. */

/** @param indent Spaces per level; 0: everything on one line. */
export function pythonJson(value: unknown, indent: number, level = 0): string {
  if (typeof value === "number") return pythonNumber(value);
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const members = Array.isArray(value)
    ? value.map((element) => pythonJson(element, indent, level + 1))
    : Object.entries(value).map(
        ([key, member]) => `${JSON.stringify(key)}: ${pythonJson(member, indent, level + 1)}`,
      );
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (members.length === 0) return `${open}${close}`;
  if (indent === 0) return `${open}${members.join(", ")}${close}`;
  const line = `\n${" ".repeat(indent * (level + 1))}`;
  return `${open}${line}${members.join(`,${line}`)}\n${" ".repeat(indent * level)}${close}`;
}

/** Python's repr() of what JSON can hold. */
export function pythonLiteral(value: unknown): string {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return pythonNumber(value);
  if (typeof value === "string") return pythonString(value);
  if (Array.isArray(value)) return `[${value.map(pythonLiteral).join(", ")}]`;
  const members = Object.entries(value as object);
  return `{${members.map(([key, member]) => `${pythonString(key)}: ${pythonLiteral(member)}`).join(", ")}}`;
}

/** The shortest digits that read back as the same number, with an exponent where Python has one. */
function pythonNumber(value: number): string {
  if (Number.isInteger(value) || Math.abs(value) >= 1e-4) return String(value);
  return value.toExponential().replace(/e([+-])(\d)$/, "e$10$2");
}

const shortEscapes: Record<string, string> = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function pythonString(text: string): string {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  // Python escapes what it does not call printable; other separators and formats are rare in arguments.
  const escaped = text.replace(/[\p{Cc}\\'\u2028\u2029]/gu, (character) => {
    if (character === "'") return quote === "'" ? "\\'" : "'";
    const code = character.charCodeAt(0);
    if (code > 0xff) return `\\u${code.toString(16)}`;
    return shortEscapes[character] ?? `\\x${code.toString(16).padStart(2, "0")}`;
  });
  return `${quote}${escaped}${quote}`;
}
