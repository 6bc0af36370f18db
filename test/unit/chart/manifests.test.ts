/**
 * The committed renderings of the chart: valid for Kubernetes, wired together, closed by default, and made of flags
 * that the program has. test/long/chart.test.ts holds them against the real Helm.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { paperModel } from "../../../checkpoint/paper-model.js";
import { gpuMemoryShare } from "../../../cli/options.js";
import { quantizationOf } from "../../../cli/precision.js";
import { packageRoot } from "../../../common/package.js";
import { engineRows, placementModel } from "../../../coordinator/placement/model.js";
import { place } from "../../../coordinator/placement/placement.js";
import { published as publishedModels } from "../../../models/published.js";
import {
  allRenderings,
  chartDir,
  type KubernetesObject,
  matches,
  podTemplates,
  published,
  type Rendering,
  readGolden,
} from "../../support/chart.js";
import { settingsOf } from "../../support/flags.js";
import { faultsOf } from "../../support/kubernetes-schema.js";
import { portOf } from "../../support/local-pods.js";

const ofRendering = (name: string) => readGolden(allRenderings.find((each) => each.name === name)!);
const cases = allRenderings.map((rendering) => [rendering.name, rendering] as const);

test("the check by Kubernetes' schemas notices a field that is not there and a value of another type", async () => {
  const [deployment] = ofRendering("demo-cpu").filter(({ kind }) => kind === "Deployment");
  expect(await faultsOf(deployment!)).toEqual([]);
  const [container] = deployment!["spec"].template.spec.containers;
  container.readinesProbe = container.readinessProbe;
  deployment!["spec"].replicas = "one";
  const faults = await faultsOf(deployment!);
  expect(faults[0]).toMatch(/^\/spec\/replicas /);
  expect(faults.at(-1)).toBe("/spec/template/spec/containers/0/readinesProbe is no field of Kubernetes");
});

describe.each(cases)("%s", (_, rendering: Rendering) => {
  let objects: KubernetesObject[];
  let pods: ReturnType<typeof podTemplates>;
  beforeAll(() => {
    objects = readGolden(rendering);
    pods = podTemplates(objects);
  });
  const services = () => objects.filter(({ kind }) => kind === "Service") as any[];
  const ours = () => pods.filter(({ spec }) => spec.containers[0].command[0] === "glm-relay");

  test("every object is what Kubernetes' own schema of its type says", async () => {
    for (const object of objects) expect(await faultsOf(object), object.metadata.name).toEqual([]);
  });

  test("every name is unique in its kind, and a valid one", () => {
    const names = objects.map(({ kind, metadata }) => `${kind} ${metadata.name}`);
    expect(new Set(names).size).toBe(names.length);
    for (const { metadata } of objects) expect(metadata.name).toMatch(/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/);
  });

  test("selectors choose the pods that they are for, and no others", () => {
    for (const { object, metadata, owner } of pods) {
      const selector = object["spec"].selector?.matchLabels;
      if (selector === undefined) continue;
      const chosen = pods.filter((pod) => matches(selector, pod.metadata.labels));
      expect(chosen.map((pod) => pod.owner)).toEqual([owner]);
      // A selector cannot be changed: no label in it may change with a release.
      expect(Object.keys(selector).sort()).toEqual([
        "app.kubernetes.io/component",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/name",
      ]);
      expect(metadata.labels).toMatchObject(selector);
    }
    for (const { metadata, spec } of services()) {
      const chosen = pods.filter((pod) => matches(spec.selector, pod.metadata.labels));
      expect(chosen, metadata.name).toHaveLength(1);
      for (const { targetPort } of spec.ports) portOf(chosen[0]!.spec.containers[0], targetPort);
    }
  });

  test("budgets, policies and monitors are about something that is there", () => {
    const chosenBy = (labels: Record<string, string>) =>
      pods.filter((pod) => matches(labels, pod.metadata.labels));
    for (const { kind, metadata, spec } of objects as any[]) {
      if (kind === "PodDisruptionBudget")
        expect(chosenBy(spec.selector.matchLabels), metadata.name).toHaveLength(1);
      if (kind === "NetworkPolicy")
        expect(chosenBy(spec.podSelector.matchLabels), metadata.name).toHaveLength(1);
      if (kind === "PodMonitor") {
        const [worker, ...more] = chosenBy(spec.selector.matchLabels);
        expect(more).toEqual([]);
        portOf(worker!.spec.containers[0], spec.podMetricsEndpoints[0].port);
      }
      if (kind === "ServiceMonitor") {
        const watched = services().filter((service) =>
          matches(spec.selector.matchLabels, service.metadata.labels),
        );
        expect(watched.map((service) => service.spec.ports[0].name)).toEqual([spec.endpoints[0].port]);
      }
    }
    const kinds = objects.map(({ kind }) => kind);
    expect(kinds.includes("ServiceMonitor")).toBe(rendering.name === "everything");
  });

  test("only ready coordinators are behind the API's Service, and workers find one that is not ready", () => {
    const byPort = (name: string) => services().filter(({ spec }) => spec.ports[0].name === name);
    expect(byPort("http").map(({ spec }) => spec.publishNotReadyAddresses)).toEqual([undefined]);
    expect(byPort("cluster").map(({ spec }) => spec.publishNotReadyAddresses)).toEqual([true]);
    expect(byPort("link").map(({ spec }) => spec.publishNotReadyAddresses)).toEqual([true]);
  });

  test("pods run without root, without a writable image and without a token", () => {
    for (const { owner, spec } of pods) {
      expect(spec, owner).toMatchObject({ automountServiceAccountToken: false, enableServiceLinks: false });
      expect(spec.securityContext, owner).toMatchObject({
        runAsNonRoot: true,
        seccompProfile: { type: "RuntimeDefault" },
      });
      expect(spec.securityContext.runAsUser, owner).toBeGreaterThan(0);
      for (const name of ["hostNetwork", "hostIPC", "hostPID"]) expect(spec).not.toHaveProperty(name);
      for (const container of spec.containers) {
        expect(container.securityContext, owner).toEqual({
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ["ALL"] },
        });
        expect(container.image, owner).toMatch(/^[^@]+:[^@:]+(@sha256:[0-9a-f]{64})?$/);
        expect(container.image, owner).not.toMatch(/:latest/);
        expect(container.resources.limits.memory, owner).toBeDefined();
        expect(container.resources.requests.memory, owner).toBeDefined();
      }
    }
  });

  test("every volume that is mounted is there, and the other way round", () => {
    for (const { owner, object, spec } of pods) {
      const claims = (object["spec"].volumeClaimTemplates ?? []).map(({ metadata }: any) => metadata.name);
      const volumes = [...(spec.volumes ?? []).map(({ name }: any) => name), ...claims];
      const mounted = (spec.containers[0].volumeMounts ?? []).map(({ name }: any) => name);
      expect(mounted.sort(), owner).toEqual(volumes.sort());
    }
  });

  test("coordinator and workers pass flags that the program has, with values that it takes", () => {
    expect(ours()).toHaveLength(2);
    for (const { spec } of ours()) {
      const [{ args, env }] = spec.containers;
      const variables = Object.fromEntries(env.map(({ name, value }: any) => [name, value ?? "127.0.0.1"]));
      const expanded = args.map((arg: string) =>
        arg.replace(/\$\((\w+)\)/g, (_whole, name: string) => {
          expect(Object.keys(variables)).toContain(name);
          return name === "POD_NAME" ? "worker-0" : "10.0.0.1";
        }),
      );
      expect(Object.keys(settingsOf(expanded, { GLM_RELAY_LOG: variables.GLM_RELAY_LOG }))).toContain(
        "probePort",
      );
    }
  });

  test("ports and addresses in the flags are those of the manifests", () => {
    const [coordinator, worker] = ["coordinator", "worker"].map(
      (name) => ours().find(({ spec }) => spec.containers[0].args[0] === name)!.spec.containers[0],
    );
    const flag = (container: any, name: string): string | undefined =>
      container.args.find((arg: string) => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
    const portIn = (text: string | undefined) => Number(text?.split(":").at(-1));
    expect(portIn(flag(coordinator, "port"))).toBe(portOf(coordinator, "http"));
    expect(portIn(flag(coordinator, "cluster-listen"))).toBe(portOf(coordinator, "cluster"));
    expect(portIn(flag(worker, "listen"))).toBe(portOf(worker, "link"));
    expect(portIn(flag(worker, "advertise"))).toBe(portOf(worker, "link"));
    for (const container of [coordinator, worker]) {
      expect(portIn(flag(container, "probe-port"))).toBe(portOf(container, "probe"));
    }
    const cluster = services().find(({ spec }) => spec.ports[0].name === "cluster");
    const address = `${cluster.metadata.name}:${cluster.spec.ports[0].port}`;
    expect(flag(worker, "coordinator")).toBe(address);
    expect(flag(coordinator, "cluster-advertise")).toBe(address);
    const redis = services().find(({ spec }) => spec.ports[0].name === "redis");
    if (redis !== undefined) {
      expect(flag(coordinator, "redis")).toBe(`redis://${redis.metadata.name}:${redis.spec.ports[0].port}`);
    }
  });

  test("probes leave a slow disk its time, and drains end before the pod is killed", () => {
    const values = parse(readFileSync(rendering.valuesFile, "utf8"));
    const defaults = parse(readFileSync(join(chartDir, "values.yaml"), "utf8"));
    const sizeGB = values.model?.sizeGB ?? defaults.model.sizeGB;
    const readMBps = values.startup?.readMBps ?? defaults.startup.readMBps;
    const [coordinator] = ours().filter(({ object }) => object.kind === "Deployment");
    const stages = Number(
      coordinator!.spec.containers[0].args.find((arg: string) => arg.startsWith("--stages=")).split("=")[1],
    );
    const budget = 60 + Math.ceil((1.5 * sizeGB * 1000) / stages / readMBps);
    for (const { spec } of ours()) {
      const [{ startupProbe, livenessProbe, readinessProbe, args, lifecycle }] = spec.containers;
      expect(startupProbe.failureThreshold * startupProbe.periodSeconds).toBeGreaterThanOrEqual(budget);
      expect(startupProbe.failureThreshold * startupProbe.periodSeconds).toBeLessThan(budget + 10);
      // Loading answers /livez and not /readyz: a probe that restarts must not ask the latter.
      expect(startupProbe.httpGet).toEqual({ path: "/livez", port: "probe" });
      expect(livenessProbe.httpGet).toEqual({ path: "/livez", port: "probe" });
      expect(readinessProbe.httpGet).toEqual({ path: "/readyz", port: "probe" });
      const drain = Number(args.find((arg: string) => arg.startsWith("--drain-timeout=")).split("=")[1]);
      const preStop = lifecycle?.preStop.sleep.seconds ?? 0;
      expect(spec.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(preStop + drain + 20);
    }
    expect(coordinator!.object["spec"]).toMatchObject({
      replicas: 1,
      strategy: { type: "Recreate" },
      progressDeadlineSeconds: budget + 600,
    });
  });

  test("workers start together and are replaced by hand", () => {
    const [worker] = ours().filter(({ object }) => object.kind === "StatefulSet");
    expect(worker!.object["spec"]).toMatchObject({
      podManagementPolicy: "Parallel",
      updateStrategy: { type: "OnDelete" },
    });
    expect(services().map(({ metadata }) => metadata.name)).toContain(worker!.object["spec"].serviceName);
  });

  test("a policy closes every pod, and the workers' ports are open to the cluster's own pods alone", () => {
    const policies = objects.filter(({ kind }) => kind === "NetworkPolicy") as any[];
    for (const { owner, metadata, spec } of pods) {
      // The pod of `helm test` listens on nothing.
      if (spec.restartPolicy === "Never") continue;
      const own = policies.filter((policy) => matches(policy.spec.podSelector.matchLabels, metadata.labels));
      expect(own, owner).toHaveLength(1);
      expect(own[0].spec.policyTypes).toEqual(["Ingress", "Egress"]);
      for (const { ports, from } of own[0].spec.ingress) {
        for (const { port } of ports) {
          portOf(spec.containers[0], port);
          if (["http", "grpc", "probe"].includes(port)) continue;
          const components = from.map(({ podSelector, ...more }: any) => {
            expect(more).toEqual({});
            expect(podSelector.matchLabels).toMatchObject({ "app.kubernetes.io/instance": "relay" });
            return podSelector.matchLabels["app.kubernetes.io/component"];
          });
          const allowed = { cluster: ["worker"], link: ["worker", "coordinator"], redis: ["coordinator"] };
          expect(components).toEqual(allowed[port as keyof typeof allowed]);
        }
      }
    }
  });

  test("the API asks for a key, or says in its flags that it does not", () => {
    const [{ args }] = ours().find(({ object }) => object.kind === "Deployment")!.spec.containers;
    const hasKeys = args.some((arg: string) => arg.startsWith("--api-keys-file="));
    expect(args.includes("--insecure-no-auth")).toBe(!hasKeys);
    expect(hasKeys).toBe(rendering.name !== "plain");
  });

  test("no secret stands in a command, a variable or a ConfigMap", () => {
    const texts = objects.filter(({ kind }) => kind !== "Secret").map((object) => JSON.stringify(object));
    expect(texts.join("\n")).not.toMatch(/sk-|requirepass [^%]|"secretKeyRef"/);
  });
});

const workerOf = (name: string) =>
  podTemplates(ofRendering(name)).find(
    ({ object }) => object.kind === "StatefulSet" && object.metadata.name.endsWith("-worker"),
  )!;

test("workers of a published values file compute on the GPU that they reserve, or on the CPU", () => {
  const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
  for (const { name, valuesFile } of published) {
    const gpus = parse(readFileSync(valuesFile, "utf8")).workers?.gpu?.count ?? 0;
    const { spec } = workerOf(name);
    const [{ resources, args, image }] = spec.containers;
    for (const of of [resources.limits, resources.requests])
      expect(of["nvidia.com/gpu"] ?? 0, name).toBe(gpus);
    expect(settingsOf(args.map(withoutReferences)), name).toMatchObject({
      device: gpus > 0 ? "cuda:0" : "cpu",
    });
    expect(image, name).toBe(`glm-relay:${version}${gpus > 0 ? "-cuda" : ""}`);
    // The coordinator needs no GPU.
    const coordinator = podTemplates(ofRendering(name)).find(({ object }) => object.kind === "Deployment")!;
    expect(coordinator.spec.containers[0].image, name).toBe(`glm-relay:${version}`);
    expect(JSON.stringify(coordinator.spec), name).not.toMatch(/nvidia|cuda/);
    const taint = { key: "nvidia.com/gpu", operator: "Exists", effect: "NoSchedule" };
    expect(spec.tolerations ?? [], name).toEqual(gpus > 0 ? [taint] : []);
  }
});

test("workers' image, device and runtime are those of the values where they say so", () => {
  const { spec } = workerOf("everything");
  const [{ image, args }] = spec.containers;
  expect(image).toMatch(/^registry\.example\.com:5000\/team\/glm-relay-gpu:2@sha256:f{64}$/);
  expect(args).toContain("--device=auto");
  expect(spec.runtimeClassName).toBe("nvidia");
  expect(spec.nodeSelector).toEqual({ gpu: "yes" });
  expect(spec.tolerations).toHaveLength(2);
});

test.each([
  ["chatglm3-6b-2-gpus", "chatglm3-6b", 8, null, null],
  ["glm-130b-4x3090", "glm-130b", 24, 7_000, "3090"],
  ["glm-130b-8x2080ti", "glm-130b", 11, 2_500, "2080-Ti"],
] as const)(
  "%s fits its cards by the plan, with room for what its head tells",
  (name, model, cardGiB, tokens, card) => {
    const coordinator = podTemplates(ofRendering(name)).find(({ object }) => object.kind === "Deployment")!;
    const { layers, stages, kv, ...precision } = settingsOf(coordinator.spec.containers[0].args) as any;
    const paper = paperModel(publishedModels[model]);
    const plan = placementModel(
      paper,
      { dtype: paper.dtype, kvType: kv, ...quantizationOf(precision) },
      engineRows(paper),
    );
    // What the figures are for.
    const { nodeSelector } = workerOf(name).spec;
    if (card !== null)
      expect(nodeSelector).toEqual({ "nvidia.com/gpu.product": `NVIDIA-GeForce-RTX-${card}` });
    // CUDA's context is gone before anything is counted.
    const memoryBytes = Math.floor(gpuMemoryShare * (cardGiB * 2 ** 30 - 500e6));
    const workers = Array.from({ length: stages }, (_, i) => ({
      id: `w${i}`,
      threads: 4,
      gpu: true,
      memoryBytes,
    }));
    const blockSize = 16;
    const minBlocks = Math.ceil(paper.contextLength / blockSize);
    const { blockCount } = place(plan, workers, { blockSize, minBlocks, maxBlocks: 1e6 }, layers);
    if (tokens === null) return;
    const { valuesFile } = published.find((each) => each.name === name)!;
    expect(readFileSync(valuesFile, "utf8")).toContain(
      `some ${tokens.toLocaleString("en")} tokens of KV cache`,
    );
    expect(Math.abs(blockCount * blockSize - tokens)).toBeLessThan(0.1 * tokens);
  },
);

/** As the kubelet puts in what stands in variables. */
function withoutReferences(arg: string): string {
  return arg.replace("$(POD_NAME)", "worker-0").replace("$(POD_IP)", "10.0.0.1");
}

test("GLM-130B is cut as reference says that it fits: every layer once, the last stage shorter for the head", () => {
  for (const [name, counts] of [
    ["glm-130b-4x3090", [18, 18, 18, 16]],
    ["glm-130b-8x2080ti", [9, 9, 9, 9, 9, 9, 9, 7]],
  ] as const) {
    const coordinator = podTemplates(ofRendering(name)).find(({ object }) => object.kind === "Deployment")!;
    const { layers, stages } = settingsOf(coordinator.spec.containers[0].args);
    expect(layers.map(({ layerBegin, layerEnd }: any) => layerEnd - layerBegin)).toEqual(counts);
    expect(layers.at(-1).layerEnd).toBe(70);
    expect(stages).toBe(counts.length);
  }
});

test("chart and program have the same version", () => {
  const chart = parse(readFileSync(join(chartDir, "Chart.yaml"), "utf8"));
  const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
  expect(chart.appVersion).toBe(version);
});
