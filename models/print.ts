/** A value of a model file, short enough for an error message. */
export function printValue(value: unknown): string {
  let text: string;
  try {
    text = JSON.stringify(value) ?? "absent";
  } catch {
    // Nested deeper than the stack: only a hostile file gets here.
    text = "a deeply nested value";
  }
  return text.length > 200 ? `${text.slice(0, 200)}...` : text;
}
