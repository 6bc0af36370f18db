/** A process that ends by itself, with stages that are idle, closed or at work, ends well. */
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";
import { INT4, randomModel, stageConfig, TINY, temporaryFolder, writeTensors } from "./support.js";

const folder = temporaryFolder();
afterAll(folder.remove);

const addon = process.env.GLM_RELAY_ADDON ?? join(packageRoot, "build/native/glm_relay.node");
const config = join(folder.path, "config.json");
const tensors = writeTensors(join(folder.path, "tiny.bin"), randomModel(TINY, "float32", 5));
writeFileSync(config, JSON.stringify(stageConfig(tensors, TINY, 0, 4, { weights: INT4 })));

const program = (rest: string) => `
  const { Stage, availableKernels } = require(${JSON.stringify(addon)});
  const config = JSON.parse(require("fs").readFileSync(${JSON.stringify(config)}));
  const cache = { directory: ${JSON.stringify(join(folder.path, "cache"))}, maxBytes: 2 ** 30, fingerprint: "abc" };
  const rows = { rowCount: 2, startPosition: 0, contextLength: 0, maskPosition: -1, blockTable: Int32Array.of(0) };
  const step = { copies: [], slice: null, sequences: [rows], tokenIds: Int32Array.of(1, 2), activations: null,
    samples: [], scores: [] };
  const open = async () => {
    const stage = new Stage(config, availableKernels[0], cache, null);
    await stage.load();
    return stage;
  };
  globalThis.kept = [];
  (async () => {
    for (let i = 0; i < 3; i++) kept.push(await open());
    ${rest}
    console.log("over");
  })();`;

test.each([
  ["closed", "for (const stage of kept) { await stage.step(step); await stage.close(); }"],
  ["idle", "for (const stage of kept) await stage.step(step);"],
  ["idle, while files are written", ""],
  [
    "at work when the process is told to end",
    "for (const stage of kept) stage.step(step); process.exitCode = 0;",
  ],
  [
    "at work in process.exit",
    'console.log("over"); for (const stage of kept) stage.step(step); process.exit(0);',
  ],
])("stages are %s", (_, rest) => {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ["-e", program(rest)], {
    encoding: "utf8",
  });
  expect({ status, signal, said: stdout.trim() }, stderr).toEqual({ status: 0, signal: null, said: "over" });
});
