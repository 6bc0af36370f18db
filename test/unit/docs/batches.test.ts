import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { packageRoot } from "../../../common/package.js";
import { batchFields } from "../../../coordinator/api/batch-body.js";
import { batchProblemCodes, batchStatuses } from "../../../coordinator/batches/batch.js";
import {
  batchWindow,
  maxCustomIdLength,
  maxLines,
  maxOpenBatches,
} from "../../../coordinator/batches/limits.js";
import { pausesMs } from "../../../coordinator/batches/webhook.js";
import { get, ScriptedService, startApi } from "../api/support.js";

const text = readFileSync(join(packageRoot, "docs/batches.md"), "utf8");

/** What stands in backticks in the first column of the table below this head. */
function firstColumn(head: string): string[] {
  const table = text.slice(text.indexOf(head)).split("\n\n", 1)[0]!;
  const rows = table.split("\n").slice(2);
  return rows.flatMap((row) => [...row.split("|")[1]!.matchAll(/`([^`]+)`/g)].map(([, name]) => name!));
}

describe("docs/batches.md", () => {
  it("names every field, problem and state, and no other", () => {
    expect(firstColumn("| Field of `POST /v1/batches`").toSorted()).toEqual(
      Object.keys(batchFields).toSorted(),
    );
    expect(firstColumn("| `code` ").toSorted()).toEqual([...batchProblemCodes].toSorted());
    for (const status of batchStatuses) expect(text).toContain(status);
  });

  it("names every route of files and batches, and no other", async () => {
    const api = await startApi(new ScriptedService());
    const { body } = await get(api, "/openapi.json");
    await api.close();
    const routes = Object.entries<object>(body.paths)
      .filter(([path]) => /^\/v1\/(files|batches)/.test(path))
      .flatMap(([path, methods]) => Object.keys(methods).map((method) => `${method.toUpperCase()} ${path}`));
    expect(firstColumn("| Route ").toSorted()).toEqual(routes.toSorted());
  });

  it("has the bounds as they are", () => {
    expect(text).toContain(`${maxLines.toLocaleString("en-US")} lines and 200 MB`);
    expect(text).toContain(`1 to ${maxCustomIdLength} characters`);
    expect(text).toContain(`Up to ${maxOpenBatches} batches may be unfinished`);
    expect(text).toContain(`At most ${batchWindow.toLocaleString("en-US")} lines`);
    const seconds = pausesMs.map((ms) => ms / 1_000);
    expect(text).toContain(`after ${seconds.slice(0, -1).join(", ")} and ${seconds.at(-1)} s`);
  });
});
