import { open } from "node:fs/promises";

/** A new name is safe from a power failure when its folder is written. */
export async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
