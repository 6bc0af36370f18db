/** Links over real sockets: one worker alone, and two stages in a row. */
import { status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { bytesFromInt32 } from "../../../common/bytes.js";
import { RelayError } from "../../../common/errors.js";
import { notYet, toServiceError } from "../../../common/grpc.js";
import { protocolVersion } from "../../../common/package.js";
import { resultFrames } from "../../../proto/link/frames.js";
import { Upstream } from "../../../proto/link/upstream.js";
import { FakeEngine, hiddenSize } from "./support/fake-engine.js";
import { LinkClient } from "./support/link-client.js";
import { assignment } from "./support/scripted-coordinator.js";
import { startCoordinator, startLinkedWorker, startTestWorker } from "./support/start.js";
import { greedy, headerOf, rowsOf, stepOf } from "./support/steps.js";

const firstRow = rowsOf(1, [3], { newBlocks: bytesFromInt32([0]), sampling: greedy });
const decodeRow = (validLength: number) => rowsOf(1, [3], { validLength, sampling: greedy });

test("steps come back as results in order, one per step", async () => {
  const { worker, link, engine } = await startLinkedWorker();
  const results = new LinkClient(worker.address);
  expect((await results.opened()).opened?.epoch).toEqual({ term: 1, plan: 1 });
  link.send(stepOf(headerOf(1, [firstRow])));
  for (let step = 2; step <= 12; step++) {
    link.send(stepOf(headerOf(step, [decodeRow(step - 1)])));
  }
  for (let step = 1; step <= 12; step++) {
    const { result } = await results.frames.next();
    results.credit(1);
    expect(result?.step).toBe(step);
    // Four floats of 3 + 4 layers each.
    expect(result?.sequences?.[0]).toMatchObject({ drawn: [{ token: 28 }], drawnPosition: step });
  }
  expect(engine.inputs).toHaveLength(12);
  await results.closeNow();
});

test("two stages in a row pass activations on and the tokens are those of one stage", async () => {
  const coordinator = await startCoordinator();
  const first = await startTestWorker(coordinator.address, new FakeEngine(), { id: "a" });
  const firstSession = await coordinator.welcomed(1);
  const lastEngine = new FakeEngine();
  const last = await startTestWorker(coordinator.address, lastEngine, { id: "b" });
  const lastSession = await coordinator.welcomed(1);
  const two = { stageCount: 2 };
  // The last stage is told first: it dials until its predecessor has heard of the epoch.
  lastSession.send({
    assign: assignment(coordinator, { ...two, stage: 1, layerBegin: 3, predecessor: first.address }),
  });
  await lastSession.state("LOADED");
  await new Promise((resolve) => setTimeout(resolve, 100));
  firstSession.send({ assign: assignment(coordinator, { ...two, layerEnd: 3 }) });
  const link = await coordinator.links.next();
  link.open();
  await Promise.all([firstSession.state("LINKED"), lastSession.state("LINKED")]);
  const results = new LinkClient(last.address, { fromStage: 2 });
  await results.opened();
  link.send(stepOf(headerOf(1, [rowsOf(1, [9, 3], { newBlocks: bytesFromInt32([0]), sampling: greedy })])));
  link.send(stepOf(headerOf(2, [rowsOf(1, [28], { validLength: 2, sampling: greedy })])));
  expect((await results.frames.next()).result?.sequences?.[0]?.drawn?.[0]?.token).toBe(28);
  // 4 floats of 28 + 4 layers are 128.
  const second = (await results.frames.next()).result;
  expect(second?.sequences?.[0]?.drawn?.[0]?.token).toBe(28);
  // Both stages say how long they took.
  expect(second?.stageUs).toEqual([500, 500]);
  expect(lastEngine.inputs[0]?.activations?.byteLength).toBe(2 * hiddenSize * 4);
  const beat = await lastSession.inbox.next(({ heartbeat }) => heartbeat?.steps === 2);
  expect(beat.heartbeat?.receivedBytes).toBe(3 * hiddenSize * 4);
});

test("the coordinator receives results with the same code that stages receive steps with", async () => {
  const { worker, link } = await startLinkedWorker();
  const results = new Upstream(
    {
      predecessor: worker.address,
      epoch: { term: 1, plan: 1 },
      pipeline: 0,
      stage: 1,
      credits: 4,
      onStale() {},
      onReceived() {},
      onLost() {},
    },
    resultFrames,
  );
  expect(await results.open()).toBe(true);
  for (let step = 1; step <= 6; step++) {
    link.send(stepOf(headerOf(step, [step === 1 ? firstRow : decodeRow(step - 1)])));
    const result = await results.next();
    results.consumed();
    expect(result).toMatchObject({ step, sequences: [{ drawn: [{ token: 28 }] }] });
  }
  results.close();
  expect(await results.next()).toBeNull();
});

test("no more frames leave than the receiver has credits for", async () => {
  const { worker, link } = await startLinkedWorker();
  const results = new LinkClient(worker.address, { credits: 2 });
  await results.opened();
  for (let step = 1; step <= 4; step++) {
    link.send(stepOf(headerOf(step, [step === 1 ? firstRow : decodeRow(step - 1)])));
  }
  await results.frames.next(({ result }) => result?.step === 2);
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(results.frames.size).toBe(0);
  results.credit(1);
  expect((await results.frames.next()).result?.step).toBe(3);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(results.frames.size).toBe(0);
  results.credit(2);
  expect((await results.frames.next()).result?.step).toBe(4);
});

test("credits of consumed steps go back to the predecessor", async () => {
  const { link } = await startLinkedWorker();
  for (let step = 1; step <= 4; step++) {
    link.send(stepOf(headerOf(step, [step === 1 ? firstRow : decodeRow(step - 1)])));
  }
  expect(await link.credits.next()).toBe(2);
  expect(await link.credits.next()).toBe(2);
});

test("a receiver that returns credits it never used is cut off", async () => {
  const { worker } = await startLinkedWorker();
  const results = new LinkClient(worker.address);
  await results.opened();
  results.credit(1);
  const ended = await results.status;
  expect(ended.code).toBe(status.DATA_LOSS);
  expect(ended.details).toContain("receiver returned 1 credits");
});

test("a second receiver is turned away while there is one, and may come after it", async () => {
  const { worker } = await startLinkedWorker();
  const one = new LinkClient(worker.address);
  await one.opened();
  const two = new LinkClient(worker.address);
  expect(await two.status).toMatchObject({ code: status.FAILED_PRECONDITION });
  await one.closeNow();
  for (let attempt = 0; ; attempt++) {
    const three = new LinkClient(worker.address);
    const outcome = await Promise.race([three.opened(), three.status]);
    if ("message" in outcome) break;
    expect(attempt).toBeLessThan(20);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
});

test("a receiver that left after it got frames cannot come back", async () => {
  const { worker, link } = await startLinkedWorker();
  const one = new LinkClient(worker.address);
  await one.opened();
  link.send(stepOf(headerOf(1, [firstRow])));
  await one.frames.next();
  await one.closeNow();
  await expect
    .poll(async () => (await new LinkClient(worker.address).status).details, { timeout: 2_000 })
    .toContain("left after frames were sent to it");
  // The predecessor is not held up: what nobody receives is dropped.
  for (let step = 2; step <= 9; step++) link.send(stepOf(headerOf(step, [decodeRow(step - 1)])));
  for (let back = 0; back < 8; ) back += await link.credits.next();
});

test("another protocol version is refused with both versions", async () => {
  const { worker } = await startLinkedWorker();
  const ended = await new LinkClient(worker.address, { protocolVersion: 9 }).status;
  expect(ended.details).toContain(`protocol version 9 dialled protocol version ${protocolVersion}`);
  expect(ended.metadata.get("glm-relay-code")).toEqual(["version_mismatch"]);
});

test("a predecessor that refuses the version fails the stage for good", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator) });
  (await coordinator.links.next()).refuse(
    toServiceError(new RelayError("version_mismatch", "protocol 1 dialled protocol 2")),
  );
  const failed = await session.state("FAILED");
  expect(failed.errorCode).toBe("version_mismatch");
  expect(failed.detail).toBe(
    `link of epoch 1.1 from the coordinator at ${coordinator.address}: protocol 1 dialled protocol 2`,
  );
});

test("a predecessor that does not know the epoch yet is dialled again", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator) });
  for (let attempt = 0; attempt < 3; attempt++) {
    (await coordinator.links.next()).refuse(notYet("this stage has not heard of epoch 1.1 yet"));
  }
  (await coordinator.links.next()).open();
  await session.state("LINKED");
});

test("a predecessor that is not there yet is dialled again", async () => {
  const coordinator = await startCoordinator();
  const absent = await startCoordinator();
  absent.stop();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator, { predecessor: absent.address }) });
  await session.state("LOADED");
  await new Promise((resolve) => setTimeout(resolve, 100));
  const present = await startCoordinator(absent.port);
  (await present.links.next()).open();
  await session.state("LINKED");
});

test("an epoch that is over at the predecessor is not dialled again, and no failure is reported", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator) });
  await session.state("LOADED");
  (await coordinator.links.next()).refuse(toServiceError(new RelayError("stale_epoch", "over")));
  const seen = [];
  for (let beats = 0; beats < 10; beats++) seen.push(await session.inbox.next());
  expect(seen.every(({ heartbeat }) => heartbeat != null)).toBe(true);
  expect(coordinator.links.size).toBe(0);
});

test("a release ends the dialling of an epoch", async () => {
  const coordinator = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator) });
  (await coordinator.links.next()).refuse(notYet("early"));
  session.send({ release: { epoch: { term: 1, plan: 1 }, reason: "a worker was lost" } });
  await session.inbox.next(({ heartbeat }) => heartbeat != null);
  await new Promise((resolve) => setTimeout(resolve, 250));
  const attempts = coordinator.links.size;
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(coordinator.links.size).toBe(attempts);
});

test("activations with a wrong checksum fail the stage and name both sums", async () => {
  const { session, link } = await startLinkedWorker({}, { stage: 1, stageCount: 2 });
  const activations = Buffer.alloc(hiddenSize * 4, 1);
  link.send({ step: { header: headerOf(1, [firstRow]), activations, checksum: 0x1234 } });
  const failed = await session.state("FAILED");
  expect(failed.errorCode).toBe("corrupt_message");
  expect(failed.detail).toMatch(/activations of step 1 have CRC-32 [0-9a-f]{8}: the sender wrote 00001234/);
});

test("a gap in the step numbers fails the stage", async () => {
  const { session, link } = await startLinkedWorker();
  link.send(stepOf(headerOf(1, [firstRow])));
  link.send(stepOf(headerOf(3, [decodeRow(1)])));
  expect((await session.state("FAILED")).detail).toContain("step 3 follows step 1");
});

test("more steps than credits fail the stage", async () => {
  const { session, link, engine } = await startLinkedWorker({}, { credits: 2 });
  const release = engine.hold();
  link.send(stepOf(headerOf(1, [firstRow])));
  link.send(stepOf(headerOf(2, [decodeRow(1)])));
  link.send(stepOf(headerOf(3, [decodeRow(2)])));
  expect((await session.state("FAILED")).detail).toContain("sender exceeded its 2 credits");
  release();
});

test("a step of an older epoch is dropped and counted", async () => {
  const { worker, session, link } = await startLinkedWorker({}, { epoch: { term: 1, plan: 2 } });
  const epoch = { term: 1, plan: 2 };
  const results = new LinkClient(worker.address, { epoch });
  await results.opened();
  link.send(stepOf(headerOf(7, [firstRow])));
  link.send(stepOf(headerOf(1, [firstRow], { epoch })));
  expect((await results.frames.next()).result).toMatchObject({ epoch, step: 1 });
  await session.inbox.next(({ heartbeat }) => heartbeat?.staleMessages === 1);
});

test("a step that contradicts the block tables fails the stage", async () => {
  const { session, link } = await startLinkedWorker();
  link.send(stepOf(headerOf(1, [rowsOf(1, [3])])));
  const failed = await session.state("FAILED");
  expect(failed).toMatchObject({ errorCode: "corrupt_message" });
  expect(failed.detail).toContain("sequence 1 needs slots for 0 valid tokens and 1 rows");
});

test("a failure of the engine fails the stage, and the next plan builds it anew", async () => {
  const { coordinator, session, link, engine } = await startLinkedWorker();
  engine.failNextStep("out of workspace");
  link.send(stepOf(headerOf(1, [firstRow])));
  expect(await session.state("FAILED")).toMatchObject({
    errorCode: "stage_failed",
    detail: "out of workspace",
  });
  await link.ended;
  session.send({ assign: assignment(coordinator, { epoch: { term: 1, plan: 2 } }) });
  (await coordinator.links.next()).open();
  await session.state("LINKED");
  expect([engine.built, engine.closed]).toEqual([2, 1]);
});

test("a device that is lost fails the stage and ends the worker with status 1", async () => {
  const { session, link, engine, worker } = await startLinkedWorker({ drainTimeout: 60 });
  engine.loseDevice("the GPU failed while computing a step: unspecified launch failure");
  const begunMs = performance.now();
  link.send(stepOf(headerOf(1, [firstRow])));
  const detail = "the GPU failed while computing a step: unspecified launch failure";
  expect(await session.state("FAILED")).toMatchObject({ errorCode: "stage_failed", detail });
  const reason = `the device is lost to this process: ${detail}`;
  expect((await session.inbox.next(({ leave }) => leave != null)).leave?.reason).toBe(reason);
  expect(await worker.closed).toEqual({ code: 1, reason });
  // It does not drain: nothing that comes could be computed.
  expect(performance.now() - begunMs).toBeLessThan(10_000);
  expect([engine.built, engine.closed]).toEqual([1, 1]);
});

test("a predecessor that ends the stream of a current epoch is reported as lost", async () => {
  const { session, link, coordinator } = await startLinkedWorker();
  link.end();
  expect(await session.state("FAILED")).toMatchObject({
    errorCode: "worker_lost",
    detail: `link of epoch 1.1 from the coordinator at ${coordinator.address}: the stream was ended`,
  });
});

test("a predecessor that dies is reported as lost", async () => {
  const coordinator = await startCoordinator();
  const predecessor = await startCoordinator();
  await startTestWorker(coordinator.address);
  const session = await coordinator.welcomed(1);
  session.send({
    assign: assignment(coordinator, { stage: 1, stageCount: 2, predecessor: predecessor.address }),
  });
  (await predecessor.links.next()).open();
  await session.state("LINKED");
  predecessor.stop();
  const failed = await session.state("FAILED");
  expect(failed.errorCode).toBe("worker_lost");
  expect(failed.detail).toContain(`link of epoch 1.1 from stage 0 at ${predecessor.address}`);
});

test("a release closes both links quietly", async () => {
  const { worker, session, link } = await startLinkedWorker();
  const results = new LinkClient(worker.address);
  await results.opened();
  session.send({ release: { epoch: { term: 1, plan: 1 }, reason: "over" } });
  await link.ended;
  const ended = await results.status;
  expect(ended.metadata.get("glm-relay-code")).toEqual(["stale_epoch"]);
  expect(ended.details).toBe("epoch 1.1 is over at stage 0");
  const next = await session.inbox.next(
    ({ stageState, heartbeat }) => stageState != null || heartbeat != null,
  );
  expect(next.heartbeat).not.toBeNull();
});

test("a predecessor whose epoch is over is no loss: the stage waits for its own word", async () => {
  const { session, link } = await startLinkedWorker({}, { stage: 1, stageCount: 2 });
  link.refuse(toServiceError(new RelayError("stale_epoch", "epoch 1.1 is over at stage 0")));
  const seen = [];
  for (let beats = 0; beats < 5; beats++) seen.push(await session.inbox.next());
  expect(seen.every(({ heartbeat }) => heartbeat != null)).toBe(true);
});

test("event loops that stand still for three seconds break neither session nor links", async () => {
  const { worker, session, link } = await startLinkedWorker();
  const results = new LinkClient(worker.address);
  await results.opened();
  // Sleeps without turning the loop; both ends share it here, so every timer is late at once.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3_100);
  link.send(stepOf(headerOf(1, [firstRow])));
  expect((await results.frames.next()).result?.step).toBe(1);
  await session.inbox.next(({ heartbeat }) => heartbeat?.steps === 1);
});

test("a large step crosses whole", async () => {
  const { session, link, engine } = await startLinkedWorker({}, { stage: 1, stageCount: 2, blockCount: 64 });
  const rows = 64;
  const activations = Buffer.from(Float32Array.from({ length: rows * hiddenSize }, (_, i) => i).buffer);
  const newBlocks = bytesFromInt32([0, 1, 2, 3]);
  const header = headerOf(1, [rowsOf(1, new Array(rows).fill(1), { newBlocks })], { stageUs: [9] });
  link.send(stepOf(header, activations));
  await session.inbox.next(({ heartbeat }) => heartbeat?.steps === 1);
  expect(Buffer.compare(Buffer.from(engine.inputs[0]!.activations!), activations)).toBe(0);
});
