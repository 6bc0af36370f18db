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
  type KubernetesObject,
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
  [
    "workers.gpu.count=1,workers.device=cpu",
    /"cpu" with workers.gpu.count 1 would reserve GPUs that stay idle/,
  ],
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

describe("before an API server", () => {
  let server: FakeApiServer;
  let kubeconfig: string;
  /** What would be installed, and what Helm would print, as far as it can see into the cluster. */
  const install = async () => {
    const cluster = ["--kubeconfig", kubeconfig, "--namespace", namespace, "--dry-run=server"];
    const flags = ["--disable-openapi-validation", "--set", "insecureWorkers=true"];
    const printed = await helmLater(path, ["install", releaseName, chartDir, ...cluster, ...flags]);
    const [manifest, notes] = printed.split("\nMANIFEST:\n")[1]!.split("\nNOTES:\n") as [string, string];
    return { objects: readManifests(manifest), notes };
  };
  const secretsIn = (objects: readonly KubernetesObject[]) => objects.filter(({ kind }) => kind === "Secret");
  const decoded = (objects: readonly KubernetesObject[]) =>
    secretsIn(objects).map(({ data }) => Buffer.from(Object.values<string>(data)[0]!, "base64").toString());

  beforeAll(async () => {
    server = await FakeApiServer.start();
    kubeconfig = join(mkdtempSync(join(tmpdir(), "glm-relay-helm-")), "kubeconfig");
    writeFileSync(kubeconfig, server.kubeconfig);
  });
  afterAll(async () => {
    await server.close();
    rmSync(dirname(kubeconfig), { recursive: true });
  });

  withHelm("a key and a password are generated once, and kept when they are there", async () => {
    server.objects = [];
    const [first, second] = [await install(), await install()];
    const [key, password] = decoded(first.objects);
    expect(key).toMatch(/^sk-[A-Za-z0-9]{48}$/);
    expect(password).toMatch(/^[A-Za-z0-9]{48}$/);
    expect(decoded(second.objects)).not.toEqual([key, password]);
    server.objects = secretsIn(first.objects).map((secret) => owned(secret));
    expect(decoded((await install()).objects)).toEqual([key, password]);
  });

  withHelm("the notes name objects that are there, and say what is not safe", async () => {
    server.objects = [];
    const { objects, notes } = await install();
    const there = (kind: string, name: string) =>
      objects.some((object) => object.kind === kind && object.metadata.name === name);
    expect(notes).toMatch(/WARNING: workers talk to each other .* without encryption/s);
    const named = [...notes.matchAll(/(deployment|service)\/([\w-]+)/g)];
    expect(named.map(([, kind]) => kind)).toEqual(["deployment", "service"]);
    for (const [, kind, name] of named) {
      expect(there(kind === "service" ? "Service" : "Deployment", name!), name).toBe(true);
    }
    expect(there("Secret", /get secret ([\w-]+) -o/.exec(notes)![1]!)).toBe(true);
    expect(there("Service", /nc -w 3 ([\w-]+)\.glm 9000/.exec(notes)![1]!)).toBe(true);
    expect(notes).toContain("helm test -n glm relay --logs");
  });
});

/** As Helm marks what it has installed. */
function owned(object: KubernetesObject): KubernetesObject {
  const annotations = {
    "meta.helm.sh/release-name": releaseName,
    "meta.helm.sh/release-namespace": namespace,
  };
  return { ...object, metadata: { ...object.metadata, annotations } as KubernetesObject["metadata"] };
}
