/** Where this package lies and which version it is; the same from source and from dist/. */
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

function findPackageRoot(start: string): string {
  for (let directory = start; ; directory = dirname(directory)) {
    const file = join(directory, "package.json");
    if (
      existsSync(file) &&
      (JSON.parse(readFileSync(file, "utf8")) as { name?: string }).name === "glm-relay"
    ) {
      return directory;
    }
    if (directory === dirname(directory)) throw new Error(`no glm-relay package.json above ${start}`);
  }
}

export const packageRoot = findPackageRoot(dirname(fileURLToPath(import.meta.url)));

export const softwareVersion = (
  JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string }
).version;

/** Raised whenever anything in proto/internal.proto or its meaning changes. */
export const protocolVersion = 5;
