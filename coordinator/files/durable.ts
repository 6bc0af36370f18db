/** Writing so that it is still there after a power cut, whole or as it was before. */
import { open, rename, unlink } from "node:fs/promises";
import { dirname } from "node:path";

/** Puts a file of this text in place of whatever is at the path; on the disk when it resolves. */
export async function writeDurably(path: string, text: string): Promise<void> {
  const part = `${path}.tmp`;
  try {
    const handle = await open(part, "w", 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(part, path);
  } catch (error) {
    // Left behind, it would hold the last bytes of a full disk.
    await unlink(part).catch(() => undefined);
    throw error;
  }
  await syncFolder(dirname(path));
}

/** What was made, moved and removed in a folder is on the disk when it resolves. */
export async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
