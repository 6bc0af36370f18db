import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { packageRoot } from "../common/package.js";

/**
 * Path of the file that a thread runs. It is compiled code; run from source (tests), it lies in dist/ all
 * the same.
 * @param url  import.meta.url of a file in the same folder.
 * @param name With the extension .js.
 */
export function threadFile(url: string, name: string): string {
  const folder = dirname(fileURLToPath(url));
  if (!url.endsWith(".ts")) return join(folder, name);
  return join(packageRoot, "dist", relative(packageRoot, folder), name);
}
