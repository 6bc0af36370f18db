/** Fields of config.json that are replaced on the command line, through a cluster of real processes. */
import { expect, it, onTestFinished } from "vitest";
import { openModel } from "../../checkpoint/index.js";
import { TestCluster, tinyModel } from "../support/cluster.js";

it("every process reads the model with the same overrides", async () => {
  const flags = ["--set", "rope_ratio=50", "--set", "_name_or_path=THUDM/chatglm3-6b-32k"];
  const cluster = await TestCluster.start({ stages: 2, precision: flags });
  onTestFinished(async () => void (await cluster.stop()));
  const overrides = { rope_ratio: 50, _name_or_path: "THUDM/chatglm3-6b-32k" };
  const { fingerprint } = await openModel(tinyModel, { overrides });
  const view = await cluster.view();
  expect(view.model).toBe("THUDM/chatglm3-6b-32k");
  // Workers refuse a plan of another fingerprint: both have read what the coordinator was told.
  expect(view.numericsId).toContain(fingerprint.slice(0, 16));
  expect(fingerprint).not.toBe((await openModel(tinyModel)).fingerprint);
  expect(cluster.coordinator.output).toContain('\\"rope_ratio\\" is 50 by --set; the file has no such field');
});
