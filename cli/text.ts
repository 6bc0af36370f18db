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
