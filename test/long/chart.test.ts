/**
 * The chart under the real Helm. The committed renderings in test/golden/chart, which the fast tests look at, are
 * what it renders now; after a change of the chart: make test-long VITEST_ARGS="test/long/chart.test.ts -u"
 */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  allRenderings,
  chartDir,
  dashboardFile,
  namespace,
  normalized,
  readManifests,
  releaseName,
} from "../support/chart.js";
import { FakeApiServer } from "../support/fake-apiserver.js";
import { findHelm, helm, helmLater, kubeVersion, template } from "../support/helm.js";

const found = findHelm();
const path = "path" in found ? found.path : "";
if ("missing" in found) process.stderr.write(`skipped: the chart under Helm: ${found.missing}\n`);
const withHelm = test.skipIf("missing" in found);

const files = allRenderings.map((rendering) => [rendering.name, rendering] as const);

withHelm.each(files)("%s: the chart has nothing that lint --strict minds", (_, { valuesFile }) => {
  const flags = ["--strict", "--kube-version", kubeVersion, "--set", "insecureWorkers=true"];
  expect(helm(path, ["lint", chartDir, ...flags, "-f", valuesFile])).toContain(
    "1 chart(s) linted, 0 chart(s) failed",
  );
});

withHelm.each(files)("%s: is rendered as committed", async (_, { valuesFile, goldenFile }) => {
  await expect(normalized(template(path, "-f", valuesFile))).toMatchFileSnapshot(goldenFile);
});

withHelm("nothing is rendered before insecureWorkers is set by hand", () => {
  expect(() => template(path, "--set", "insecureWorkers=false")).toThrow(
    /insecureWorkers: expected true, set by hand/,
  );
});

withHelm.each([
  ["coordinator.replicas=2", /coordinator\/replicas.*maximum: got 2, want 1/],
  ["coordinator.replica=1", /coordinator.*additional properties 'replica' not allowed/],
  ["worker.count=2", /additional properties 'worker' not allowed/],
  ["model.source=claim", /model\/claim.*minLength/],
  ["model.source=hf", /model\/source/],
  ["image.tag=latest", /image\/tag/],
  ["redis.url=redis://:secret@redis:6379", /redis\/url/],
  ["workers.count=3,pipeline.stages=4", /3 workers cannot hold pipeline.stages \* pipeline.count = 4 stages/],
  ["workers.count=2,pipeline.count=3", /2 workers cannot hold pipeline.stages \* pipeline.count = 3 stages/],
  ["pipeline.layers=0-1", /"0-1" has 1 ranges, expected 4/],
  ["workers.resources.limits.cpu=500m", /workers.resources.limits.cpu is "500m", expected a whole number/],
])("%s is refused", (values, message) => {
  expect(() => template(path, "--set", values)).toThrow(message);
});

withHelm("the chart asks for a Kubernetes that can do what it renders", () => {
  const render = (version: string) => template(path, "--kube-version", version);
  expect(() => render("1.29.9")).toThrow(/requires kubeVersion: >=1.30.0/);
});

withHelm("the dashboard's ConfigMap holds the committed dashboard", () => {
  const objects = readManifests(template(path, "--set", "metrics.dashboard=true"));
  const map = objects.find(({ metadata }) => metadata.labels?.["grafana_dashboard"] === "1");
  expect(JSON.parse(map?.["data"]["glm-relay.json"])).toEqual(
    JSON.parse(readFileSync(dashboardFile, "utf8")),
  );
});

describe("a release on an API server", () => {
  let server: FakeApiServer;
  let kubeconfig: string;
  let notes: string;
  const run = (...args: string[]) =>
    helmLater(path, [...args, "--namespace", namespace, "--kubeconfig", kubeconfig]);
  const flags = ["--disable-openapi-validation", "--set", "insecureWorkers=true"];
  const secret = (name: string, key: string) => server.object("Secret", `relay-glm-relay-${name}`)?.data[key];

  beforeAll(async () => {
    if ("missing" in found) return;
    server = await FakeApiServer.start();
    kubeconfig = join(mkdtempSync(join(tmpdir(), "glm-relay-helm-")), "kubeconfig");
    writeFileSync(kubeconfig, server.kubeconfig);
    notes = await run("install", releaseName, chartDir, ...flags);
  });
  afterAll(async () => {
    if (server === undefined) return;
    await server.close();
    rmSync(dirname(kubeconfig), { recursive: true });
  });

  withHelm("is installed with a key and a password of its own", () => {
    expect(Buffer.from(secret("api-keys", "keys"), "base64").toString()).toMatch(/^sk-[A-Za-z0-9]{48}$/);
    expect(Buffer.from(secret("redis", "password"), "base64").toString()).toMatch(/^[A-Za-z0-9]{48}$/);
  });

  withHelm("prints commands whose objects are there, and what is not safe", () => {
    expect(notes).toMatch(/WARNING: workers talk to each other .* without encryption/s);
    for (const [, kind, name] of notes.matchAll(/(deployment|service)\/([\w-]+)/g)) {
      expect(server.object(kind === "service" ? "Service" : "Deployment", name!), name).not.toBeNull();
    }
    const [, secretName] = /get secret ([\w-]+) -o/.exec(notes)!;
    expect(server.object("Secret", secretName!)).not.toBeNull();
    const [, host] = /nc -w 3 ([\w-]+)\.glm 9000/.exec(notes)!;
    expect(server.object("Service", host!)).not.toBeNull();
    expect(notes).toContain("helm test -n glm relay");
  });

  withHelm("keeps its key and its password when it is upgraded", async () => {
    const before = [secret("api-keys", "keys"), secret("redis", "password")];
    await run("upgrade", releaseName, chartDir, ...flags, "--set", "workers.count=5,coordinator.drainSeconds=10");
    expect([secret("api-keys", "keys"), secret("redis", "password")]).toEqual(before);
    expect(server.object("StatefulSet", "relay-glm-relay-worker").spec.replicas).toBe(5);
  });

  withHelm("leaves the batches' volume when it is uninstalled, and nothing else", async () => {
    await run("uninstall", releaseName);
    expect(server.object("PersistentVolumeClaim", "relay-glm-relay-data")).not.toBeNull();
    expect(server.object("Deployment", "relay-glm-relay-coordinator")).toBeNull();
    expect(server.object("Secret", "relay-glm-relay-api-keys")).toBeNull();
  });
});
