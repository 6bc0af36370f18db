/** Numbers and tables as people read them. */

/** "1.5 GiB"; whole bytes below 1 KiB. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A table without colours, so that it reads the same in a terminal, a file and a CI log. Empty without rows. */
export async function formatTable(head: string[], rows: string[][]): Promise<string> {
  if (rows.length === 0) return "";
  // Loaded here, because most commands print no table and --help should be quick.
  const { default: Table } = await import("cli-table3");
  const table = new Table({ head, style: { head: [], border: [], compact: true } });
  table.push(...rows);
  return table.toString();
}

/** Characters of a value that a message repeats. */
const shownCharsMax = 60;

/** A value from somebody's file, short enough for a message. */
export function showValue(value: unknown): string {
  if (Array.isArray(value)) return "[...]";
  if (typeof value === "object" && value !== null) return "{...}";
  if (typeof value !== "string") return String(value);
  if (value.length <= shownCharsMax) return JSON.stringify(value);
  return `${JSON.stringify(value.slice(0, shownCharsMax))}...`;
}

/** "1,234,567" */
export function formatCount(count: number): string {
  return Math.round(count).toLocaleString("en-US");
}

/** "0.4 s", "42 s", "3 min 20 s", "2 h 5 min". */
export function formatDuration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3_600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** "[####......]" */
export function formatBar(fraction: number, width: number): string {
  const filled = Math.round(width * fraction);
  return `[${"#".repeat(filled)}${".".repeat(width - filled)}]`;
}

/** As a shell takes it for one word. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
