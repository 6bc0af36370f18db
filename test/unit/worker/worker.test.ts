/** The worker's control plane over real sockets, with a coordinator whose words the test speaks. */
import { expect, test } from "vitest";
import { protocolVersion, softwareVersion } from "../../../common/package.js";
import { FakeEngine } from "./support/fake-engine.js";
import { LinkClient } from "./support/link-client.js";
import { assignment } from "./support/scripted-coordinator.js";
import { startCoordinator, startLinkedWorker, startTestWorker } from "./support/start.js";
import { headerOf, rowsOf, stepOf } from "./support/steps.js";

test("a worker says who it is and where it listens", async () => {
  const coordinator = await startCoordinator();
  const worker = await startTestWorker(coordinator.address);
  const register = await (await coordinator.sessions.next()).registered();
  expect(register).toMatchObject({
    protocolVersion,
    softwareVersion,
    worker: "worker-1",
    dataAddress: worker.address,
    memoryBytes: 1 << 30,
    threads: 1,
    kernels: "fake",
    backend: "cpu",
    canonVersion: 1,
    highestTerm: 0,
    pid: process.pid,
    probeAddress: "",
  });
  expect(register.incarnation).toMatch(/^[0-9a-f-]{36}$/);
});

test("a worker with probes tells where they are, also the coordinator of a later session", async () => {
  const coordinator = await startCoordinator();
  const worker = await startTestWorker(coordinator.address, new FakeEngine(), { probePort: 0 });
  const session = await coordinator.sessions.next();
  expect((await session.registered()).probeAddress).toBe(worker.probeAddress);
  session.end();
  expect((await (await coordinator.sessions.next()).registered()).probeAddress).toBe(worker.probeAddress);
});

test("a refused worker ends with status 1 and the coordinator's words", async () => {
  const coordinator = await startCoordinator();
  const worker = await startTestWorker(coordinator.address);
  const session = await coordinator.sessions.next();
  await session.registered();
  session.send({ refused: { code: "version_mismatch", message: "protocol 1 here, 2 there" } });
  expect(await worker.closed).toEqual({
    code: 1,
    reason: "refused by the coordinator: version_mismatch: protocol 1 here, 2 there",
  });
});

test("heartbeats carry the engine's progress and whether it works", async () => {
  const coordinator = await startCoordinator();
  const engine = new FakeEngine();
  const release = engine.hold();
  await startTestWorker(coordinator.address, engine);
  const session = await coordinator.welcomed(1);
  const idle = await session.inbox.next(({ heartbeat }) => heartbeat != null);
  expect(idle.heartbeat).toMatchObject({ busy: false, progress: 0, steps: 0, busyUs: 0, staleMessages: 0 });
  expect(idle.heartbeat?.residentBytes).toBeGreaterThan(1 << 20);

  session.send({ assign: assignment(coordinator) });
  await session.state("LOADING");
  await session.inbox.next(({ heartbeat }) => heartbeat?.busy === true);
  release();
  const link = await coordinator.links.next();
  link.open();
  await session.state("LINKED");
  link.send(stepOf(headerOf(1, [rowsOf(1, [1], { newBlocks: Buffer.alloc(4) })])));
  const worked = await session.inbox.next(({ heartbeat }) => heartbeat?.steps === 1);
  expect(worked.heartbeat).toMatchObject({ busy: false, progress: 10, busyUs: 500 });
});

test("the stage reports how far it is, with its bytes and the weights' fingerprint", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator) });
  const epoch = { term: 1, plan: 1 };
  expect(await session.state("LOADING")).toMatchObject({ epoch });
  expect(await session.state("LOADED")).toMatchObject({
    epoch,
    weightBytes: 1_000,
    kvBytes: 2_000,
    workspaceBytes: 3_000,
    weightsFingerprint: "fake",
  });
  const link = await coordinator.links.next();
  expect(link.hello).toMatchObject({ protocolVersion, epoch, pipeline: 0, fromStage: 0, credits: 8 });
  link.open();
  expect(await session.state("LINKED")).toMatchObject({ epoch, kvBytes: 2_000 });
});

test("other weights than the plan's are a numerics mismatch that names both", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator, { weightsFingerprint: "planned" }) });
  const failed = await session.state("FAILED");
  expect(failed.errorCode).toBe("numerics_mismatch");
  expect(failed.detail).toBe("weights in /model have fingerprint fake: the plan is for planned");
});

test("a plan that cannot be is reported as failed, and the worker takes the next one", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator, { dtype: "float8" }) });
  expect(await session.state("FAILED")).toMatchObject({
    epoch: { term: 1, plan: 1 },
    errorCode: "invalid_configuration",
  });
  session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 2 }, layerEnd: 5 }) });
  expect((await session.state("FAILED")).detail).toBe("plan's layers end at 5: the model has 4");
  session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 3 } }) });
  await session.state("LOADED");
});

test("a stage that memory is too small for tells what the plan had counted", async () => {
  const coordinator = await startCoordinator();
  const engine = new FakeEngine();
  await startTestWorker(coordinator.address, engine);
  const session = await coordinator.welcomed(1);
  const planned = {
    weightBytes: 5e6,
    kvBytes: 4e6,
    workspaceBytes: 3e6,
    processBytes: 2e6,
    memoryBytes: 14e6,
  };
  const numbers =
    "; the plan counts 5 MB for weights, 4 MB for 8 KV blocks, 3 MB of workspace and 2 MB of reserve, of 14 MB that " +
    "this worker offers: give the worker a smaller --memory, which leaves fewer KV blocks, use more stages, or end " +
    "what else takes this memory";
  for (const [plan, message, told] of [
    [1, "no room for layer 3", `no room for layer 3${numbers}`],
    [2, "not enough memory", `not enough memory${numbers}`],
    [3, "tensor head is damaged", "tensor head is damaged"],
  ] as const) {
    engine.failNextBuild(message);
    const epoch = { term: 1, plan };
    session.send({ assign: assignment(coordinator, { epoch, blockCount: 8, planned }) });
    const { detail, errorCode } = await session.state("FAILED");
    expect(detail).toBe(told);
    expect(errorCode).toBe("stage_failed");
  }
  engine.failNextBuild("not enough memory");
  session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 4 } }) });
  expect((await session.state("FAILED")).detail).toBe("not enough memory");
});

test("a new epoch with the same layers keeps the stage, other layers build it anew", async () => {
  const coordinator = await startCoordinator();
  const engine = new FakeEngine();
  await startTestWorker(coordinator.address, engine);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator) });
  const first = await coordinator.links.next();
  first.open();
  await session.state("LINKED");
  session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 2 } }) });
  await first.ended;
  const second = await coordinator.links.next();
  expect(second.hello.epoch).toEqual({ term: 1, plan: 2 });
  second.open();
  await session.state("LINKED");
  expect([engine.built, engine.closed]).toEqual([1, 0]);
  session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 3 }, layerBegin: 1 }) });
  await session.state("LOADED");
  expect([engine.built, engine.closed]).toEqual([2, 1]);
});

test("plans that are replaced while another loads are never loaded", async () => {
  const coordinator = await startCoordinator();
  const engine = new FakeEngine();
  const release = engine.hold();
  await startTestWorker(coordinator.address, engine);
  const session = await coordinator.welcomed(1);
  for (const plan of [1, 2, 3, 4]) {
    session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan }, blockCount: plan }) });
  }
  await session.inbox.next(({ stageState }) => stageState?.epoch?.plan === 4);
  release();
  expect((await session.state("LOADED")).epoch).toEqual({ term: 1, plan: 4 });
  expect(engine.built).toBe(2);
});

test("messages of an older term or epoch are dropped and counted", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(3);
  session.send({ assign: assignment(coordinator, { epoch: { term: 3, plan: 2 } }) });
  const link = await coordinator.links.next();
  link.open();
  await session.state("LINKED");
  session.send({ assign: assignment(coordinator, { epoch: { term: 3, plan: 1 } }) });
  session.send({ assign: assignment(coordinator, { epoch: { term: 2, plan: 9 } }) });
  session.send({ release: { epoch: { term: 3, plan: 1 }, reason: "old" } });
  const { heartbeat } = await session.inbox.next((message) => message.heartbeat?.staleMessages === 3);
  expect(heartbeat?.busy).toBe(false);
  session.send({ release: { epoch: { term: 3, plan: 2 }, reason: "over" } });
  await link.ended;
});

test("after the coordinator vanished the worker registers again, without its plan, for the new leader", async () => {
  const first = await startCoordinator();
  const engine = new FakeEngine();
  const worker = await startTestWorker(first.address, engine);
  const session = await first.sessions.next();
  const before = await session.registered();
  session.welcome(4);
  session.send({ assign: assignment(first, { epoch: { term: 4, plan: 1 } }) });
  const link = await first.links.next();
  link.open();
  await session.state("LINKED");
  first.stop();

  const second = await startCoordinator(first.port);
  const rejoined = await second.sessions.next();
  expect(await rejoined.registered()).toMatchObject({ incarnation: before.incarnation, highestTerm: 4 });
  rejoined.welcome(5);
  await rejoined.inbox.next(({ heartbeat }) => heartbeat != null);
  const late = new LinkClient(worker.address, { epoch: { term: 4, plan: 1 } });
  expect((await late.status).details).toContain("epoch 4.1 is over here");
  rejoined.send({ assign: assignment(second, { epoch: { term: 5, plan: 1 } }) });
  (await second.links.next()).open();
  await rejoined.state("LINKED");
  expect(engine.built).toBe(1);
});

test("a leader of an older term is left, and the worker comes back to ask again", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(7);
  session.end();
  const older = await coordinator.welcomed(6);
  await older.ended;
  const again = await coordinator.sessions.next();
  expect(await again.registered()).toMatchObject({ highestTerm: 7 });
});

test("a worker that starts before its coordinator joins once that is there", async () => {
  const gone = await startCoordinator();
  gone.stop();
  await startTestWorker(gone.address);
  await new Promise((resolve) => setTimeout(resolve, 250));
  const coordinator = await startCoordinator(gone.port);
  await coordinator.welcomed(1);
});

test("closing says goodbye, finishes the running step and takes less than five seconds", async () => {
  const { engine, worker, session, link } = await startLinkedWorker();
  const results = new LinkClient(worker.address);
  await results.opened();
  const release = engine.hold();
  link.send(stepOf(headerOf(1, [rowsOf(1, [1], { newBlocks: Buffer.alloc(4) })])));
  await session.inbox.next(({ heartbeat }) => heartbeat?.busy === true);

  const begin = performance.now();
  const closing = worker.close("maintenance");
  expect((await session.inbox.next(({ leave }) => leave != null)).leave?.reason).toBe("maintenance");
  setTimeout(release, 300);
  expect((await results.frames.next()).result?.step).toBe(1);
  expect((await results.status).details).toBe("stage 0 is leaving: maintenance");
  await closing;
  expect(performance.now() - begin).toBeLessThan(5_000);
  expect(await worker.closed).toEqual({ code: 0, reason: "maintenance" });
  expect(engine.closed).toBe(1);
  await worker.close("twice");
});

test("closing does not wait for a step that never ends", async () => {
  const { engine, worker, session, link } = await startLinkedWorker();
  const results = new LinkClient(worker.address);
  await results.opened();
  engine.hold();
  link.send(stepOf(headerOf(1, [rowsOf(1, [1], { newBlocks: Buffer.alloc(4) })])));
  await session.inbox.next(({ heartbeat }) => heartbeat?.busy === true);
  const begin = performance.now();
  await worker.close("maintenance");
  expect(performance.now() - begin).toBeLessThan(5_000);
}, 10_000);

test("a coordinator beyond loopback is refused before anything is dialled", async () => {
  await expect(startTestWorker("192.0.2.1:7000")).rejects.toThrow(
    'address "192.0.2.1:7000" is beyond loopback',
  );
});

test("a port that is taken is an error that names it", async () => {
  const coordinator = await startCoordinator();
  await expect(
    startTestWorker(coordinator.address, new FakeEngine(), { listen: coordinator.address }),
  ).rejects.toThrow(`cannot listen on ${coordinator.address}`);
  await expect(
    startTestWorker(coordinator.address, new FakeEngine(), { listen: "0.0.0.0:0" }),
  ).rejects.toThrow("beyond loopback");
});

test("beyond loopback it listens when it is told so, and says where others reach it", async () => {
  const coordinator = await startCoordinator();
  const trusting = { listen: "0.0.0.0:0", insecureWorkers: true };
  await expect(startTestWorker(coordinator.address, new FakeEngine(), trusting)).rejects.toThrow(
    "expected --advertise HOST:PORT",
  );
  const advertise = "worker-0.workers:0";
  const worker = await startTestWorker(coordinator.address, new FakeEngine(), { ...trusting, advertise });
  const port = worker.address.split(":").at(-1);
  const { dataAddress } = await (await coordinator.sessions.next()).registered();
  expect(dataAddress).toBe(`worker-0.workers:${port}`);
});
