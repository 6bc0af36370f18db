import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach } from "vitest";
import type { CheckTask } from "../../../../coordinator/batches/check.js";

export const endpoint = "/v1/completions" as const;
export const model = "glm-test";

export const requestLine = (customId: string, fields: Record<string, unknown> = {}): string =>
  JSON.stringify({ custom_id: customId, method: "POST", url: endpoint, body: { prompt: [1] }, ...fields });

/** A folder for each test, gone behind it. */
export function testFolder(): () => string {
  let folder: string | null = null;
  afterEach(() => {
    if (folder !== null) rmSync(folder, { recursive: true, force: true });
    folder = null;
  });
  return () => {
    folder ??= mkdtempSync(join(tmpdir(), "glm-relay-batches-unit-"));
    return folder;
  };
}

export function checkTask(folder: string, content: string | Uint8Array): CheckTask {
  const source = join(folder, "source");
  writeFileSync(source, content);
  return { source, prepared: join(folder, "input"), endpoint, model };
}
