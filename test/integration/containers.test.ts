/**
 * The wiring of the chart and of compose.yaml without a kubelet and without an engine: the commands, variables, files
 * and probes that are written there, run as processes on loopback addresses.
 */
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { published, readGolden } from "../support/chart.js";
import { until } from "../support/cluster.js";
import { dashboardQueries } from "../support/dashboard.js";
import { LocalCompose } from "../support/local-compose.js";
import { type LocalPod, LocalPods } from "../support/local-pods.js";

const readyLimitMs = 60_000;
const question = { messages: [{ role: "user", content: "What is the capital of Japan?" }], temperature: 0 };

function ask(address: string, body: object, key?: string): Promise<Response> {
  return fetch(`http://${address}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) },
    body: JSON.stringify(body),
  });
}

describe("the manifests of the demo, as processes", () => {
  let pods: LocalPods;
  let coordinator: LocalPod;
  let workers: LocalPod[];
  let api: string;
  const outputs = () => pods.pods.map(({ name, container }) => `--- ${name}\n${container.output}`).join("\n");
  const allReady = () =>
    until(
      "all pods to be ready",
      async () => {
        const running = pods.pods.filter(({ spec }) => spec.restartPolicy !== "Never");
        const ready = await Promise.all(running.map((pod) => pods.probe(pod, "readinessProbe")));
        return ready.every(Boolean);
      },
      readyLimitMs,
      outputs,
    );

  beforeAll(async () => {
    pods = await LocalPods.start(readGolden(published.find(({ name }) => name === "demo-cpu")!));
    coordinator = pods.pods.find(({ name }) => name.includes("-coordinator-"))!;
    workers = pods.pods.filter(({ name }) => name.includes("-worker-"));
    api = pods.service("relay-glm-relay", "http");
    await allReady();
  }, readyLimitMs + 10_000);
  afterAll(async () => {
    await pods?.stop();
  });

  it("start in any order and answer all their probes", async () => {
    expect(workers).toHaveLength(4);
    for (const pod of [coordinator, ...workers, pods.pod("redis-0")]) {
      expect(await pods.probe(pod, "startupProbe"), pod.name).toBe(true);
      expect(await pods.probe(pod, "livenessProbe"), pod.name).toBe(true);
    }
  });

  it("pass the pod of `helm test`", async () => {
    const { code, output } = await pods.pod("-test").container.run();
    expect(output).toContain("Tokyo");
    expect(code).toBe(0);
  });

  it("ask for the generated key, and nowhere show it", async () => {
    expect((await ask(api, question)).status).toBe(401);
    expect((await ask(api, question, "sk-wrong")).status).toBe(401);
    const response = await ask(api, question, "sk-generated");
    expect(response.status).toBe(200);
    expect(outputs()).not.toContain("sk-generated");
  });

  it("serve every metric that the dashboard asks for", async () => {
    const pages = await Promise.all(
      [coordinator, ...workers].map(async ({ address }) =>
        (await fetch(`http://${address}:9200/metrics`)).text(),
      ),
    );
    const served = new Set(
      pages.flatMap((page) => [...page.matchAll(/^# TYPE (\S+)/gm)].map(([, name]) => name!)),
    );
    const asked = dashboardQueries().flatMap(({ selectors }) => selectors.map(({ metric }) => metric));
    const missing = asked.filter(
      (name) => !served.has(name) && !served.has(name.replace(/_(bucket|sum|count)$/, "")),
    );
    expect(missing).toEqual([]);
  });

  it("go on when the container of a worker was killed", async () => {
    const [victim] = workers;
    victim!.container.kill("SIGKILL");
    await until(
      "the container to be started again",
      () => victim!.container.restarts > 0 && victim!.container.running,
    );
    await allReady();
    expect(await (await ask(api, question, "sk-generated")).text()).toContain("Tokyo");
  });

  it("drain at SIGTERM: not ready at once, what runs is finished, exit status 0", async () => {
    const stream = await ask(
      api,
      { ...question, max_tokens: 200, ignore_eos: true, stream: true },
      "sk-generated",
    );
    const reader = stream.body!.getReader();
    await reader.read();
    const stopped = coordinator.container.stop(coordinator.spec.terminationGracePeriodSeconds * 1000);
    await until(
      "the coordinator to be not ready",
      async () => !(await pods.probe(coordinator, "readinessProbe")),
    );
    let text = "";
    const decoder = new TextDecoder();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      text += decoder.decode(part.value, { stream: true });
    }
    expect(text).toContain('"finish_reason":"length"');
    expect(text).toContain("data: [DONE]");
    expect(await stopped).toBe(0);
    const grace = workers[0]!.spec.terminationGracePeriodSeconds * 1000;
    expect(await Promise.all(workers.map(({ container }) => container.stop(grace)))).toEqual([0, 0, 0, 0]);
  });
});

describe("the services of compose.yaml, as processes", () => {
  let compose: LocalCompose;
  const outputs = () =>
    [...compose.containers.values()].map(({ name, output }) => `--- ${name}\n${output}`).join("\n");
  beforeAll(async () => {
    compose = await LocalCompose.start();
    await until("the coordinator to be healthy", () => compose.healthy("coordinator"), readyLimitMs, outputs);
  }, readyLimitMs + 10_000);
  afterAll(async () => {
    await compose?.stop();
  });

  it("are healthy, and answer without a key", async () => {
    for (const name of compose.containers.keys()) expect(await compose.healthy(name), name).toBe(true);
    const response = await ask(`${compose.container("coordinator").address}:8000`, question);
    expect(await response.text()).toContain("Tokyo");
  });

  it("say that they are not healthy when they are not", async () => {
    await compose.container("worker-2").stop(5_000);
    expect(await compose.healthy("worker-2")).toBe(false);
  });
});
