import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { expect, it } from "vitest";
import { readModelFile } from "../../../checkpoint/json.js";
import { temporaryDirectory } from "./model-fixture.js";

it("a small file that is a pipe or a folder is refused, not waited for", async () => {
  const directory = temporaryDirectory();
  const pipe = join(directory, "config.json");
  execFileSync("mkfifo", [pipe]);
  for (const path of [pipe, directory]) {
    await expect(readModelFile(path, 100)).rejects.toMatchObject({
      code: "invalid_model",
      message: `cannot read ${path}: not a regular file`,
    });
  }
});
