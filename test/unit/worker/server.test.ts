/** What the worker shows to those who watch it: health, reflection, probes. */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import {
  type Client,
  credentials,
  loadPackageDefinition,
  type ServiceClientConstructor,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { protoPath as healthProtoPath } from "grpc-health-check";
import { expect, onTestFinished, test } from "vitest";
import { FakeEngine } from "./support/fake-engine.js";
import { Inbox } from "./support/inbox.js";
import { LinkClient } from "./support/link-client.js";
import { assignment } from "./support/scripted-coordinator.js";
import { startCoordinator, startTestWorker } from "./support/start.js";
import { headerOf, rowsOf, stepOf } from "./support/steps.js";

const linkService = "glm.relay.internal.v1.Link";

function clientOf(protoFile: string, service: string, address: string): Client & Record<string, never> {
  let found: unknown = loadPackageDefinition(loadSync(protoFile));
  for (const part of service.split(".")) found = (found as Record<string, unknown>)[part];
  const client = new (found as ServiceClientConstructor)(address, credentials.createInsecure());
  onTestFinished(() => client.close());
  return client as unknown as Client & Record<string, never>;
}

function watchHealth(address: string, service: string): Inbox<string> {
  const statuses = new Inbox<string>("health");
  const client = clientOf(healthProtoPath, "grpc.health.v1.Health", address);
  const call = (client as unknown as HealthClient).watch({ service });
  call.on("data", ({ status }: { status: string }) => statuses.put(String(status)));
  call.on("error", () => undefined);
  return statuses;
}

interface HealthClient {
  watch(request: { service: string }): NodeJS.EventEmitter;
}
interface ReflectionClient {
  serverReflectionInfo(): NodeJS.EventEmitter & { write(request: object): void; end(): void };
}

test.each(["", linkService])(
  "health of %j is serving while linked, and not first of all at the end",
  async (service) => {
    const coordinator = await startCoordinator();
    const worker = await startTestWorker(coordinator.address);
    const statuses = watchHealth(worker.address, service);
    expect(await statuses.next()).toBe("2");
    const session = await coordinator.welcomed(1);
    session.send({ assign: assignment(coordinator) });
    const link = await coordinator.links.next();
    link.open();
    expect(await statuses.next()).toBe("1");
    session.send({ release: { epoch: { term: 1, plan: 1 }, reason: "over" } });
    expect(await statuses.next()).toBe("2");
    session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 2 } }) });
    (await coordinator.links.next()).open();
    expect(await statuses.next()).toBe("1");
    const closing = worker.close("maintenance");
    expect(await statuses.next()).toBe("2");
    await closing;
  },
);

test("reflection lists the worker's services", async () => {
  const coordinator = await startCoordinator();
  const worker = await startTestWorker(coordinator.address);
  const root = dirname(createRequire(import.meta.url).resolve("@grpc/reflection/package.json"));
  const file = join(root, "build/proto/grpc/reflection/v1/reflection.proto");
  const client = clientOf(file, "grpc.reflection.v1.ServerReflection", worker.address);
  const answers = new Inbox<{ listServicesResponse: { service: { name: string }[] } }>("reflection");
  const call = (client as unknown as ReflectionClient).serverReflectionInfo();
  call.on("data", (answer) => answers.put(answer));
  call.on("error", () => undefined);
  call.write({ listServices: "" });
  const { listServicesResponse } = await answers.next();
  call.end();
  const names = listServicesResponse.service.map(({ name }) => name);
  expect(names).toEqual(expect.arrayContaining([linkService, "grpc.health.v1.Health"]));
});

test("probes tell alive from ready, and metrics count steps", async () => {
  const coordinator = await startCoordinator();
  const worker = await startTestWorker(coordinator.address, new FakeEngine(), { probePort: 0 });
  const get = async (path: string) => {
    const response = await fetch(`http://${worker.probeAddress}${path}`);
    return { code: response.status, body: await response.text() };
  };
  expect(await get("/livez")).toEqual({ code: 200, body: "ok\n" });
  expect(await get("/readyz")).toEqual({ code: 503, body: "no session with the coordinator\n" });
  expect((await get("/other")).code).toBe(404);
  const session = await coordinator.welcomed(1);
  await session.inbox.next(({ heartbeat }) => heartbeat != null);
  expect(await get("/readyz")).toEqual({ code: 503, body: "not linked\n" });
  session.send({ assign: assignment(coordinator) });
  const link = await coordinator.links.next();
  link.open();
  await session.state("LINKED");
  expect(await get("/readyz")).toEqual({ code: 200, body: "ok\n" });
  const results = new LinkClient(worker.address);
  await results.opened();
  link.send(stepOf(headerOf(1, [rowsOf(1, [1, 2], { newBlocks: Buffer.alloc(4) })])));
  link.send(stepOf(headerOf(2, [rowsOf(1, [1], { validLength: 2 })])));
  await results.frames.next(({ result }) => result?.step === 2);
  const { body } = await get("/metrics");
  expect(body).toMatch(/glm_relay_build_info\{version="[^"]+",kernels="fake"\} 1/);
  expect(body).toContain('glm_relay_stage_step_seconds_count{stage="0",phase="prefill"} 1');
  expect(body).toContain('glm_relay_stage_step_seconds_count{stage="0",phase="decode"} 1');
  expect(body).toContain('glm_relay_stage_busy_seconds_total{stage="0"} 0.001');
  expect(body).toContain('glm_relay_link_bytes_total{stage="0"} 0');
  expect(body).toContain('glm_relay_link_send_seconds_count{stage="0",phase="prefill"} 1');
  expect(body).toContain('glm_relay_link_send_seconds_count{stage="0",phase="decode"} 1');
  // Of eight, two are taken: credits go back by the quarter, and the test's receiver returns none.
  expect(body).toContain('glm_relay_link_credits{stage="0"} 6');
  expect(body).toContain("process_cpu_seconds_total");
});
