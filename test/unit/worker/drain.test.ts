/** A worker that is told to end while it is needed. */
import { expect, test } from "vitest";
import { LinkClient } from "./support/link-client.js";
import { startLinkedWorker } from "./support/start.js";
import { headerOf, rowsOf, stepOf } from "./support/steps.js";

/** Linked, with a coordinator that sends a step every 100 ms for as long as the worker takes them. */
async function startBusyWorker(drainTimeout: number) {
  const linked = await startLinkedWorker({ drainTimeout });
  const results = new LinkClient(linked.worker.address);
  await results.opened();
  let step = 0;
  const send = () => {
    step += 1;
    const newBlocks = step === 1 ? { newBlocks: Buffer.alloc(4) } : {};
    linked.link.send(stepOf(headerOf(step, [rowsOf(1, [1], newBlocks)])));
  };
  send();
  const timer = setInterval(send, 100);
  void linked.worker.closed.then(() => clearInterval(timer));
  const close = async () => {
    const begun = performance.now();
    await linked.worker.close("maintenance");
    clearInterval(timer);
    return performance.now() - begun;
  };
  return { ...linked, close, quiet: () => clearInterval(timer) };
}

test("it goes on while steps come, until its time is over", async () => {
  const { close, session } = await startBusyWorker(2);
  const ms = await close();
  expect(ms).toBeGreaterThan(1_900);
  expect(ms).toBeLessThan(6_000);
  expect((await session.inbox.next(({ leave }) => leave != null)).leave?.reason).toBe("maintenance");
});

test("it leaves when no step has come for a second", async () => {
  const { close, quiet } = await startBusyWorker(60);
  setTimeout(quiet, 300);
  const ms = await close();
  expect(ms).toBeGreaterThan(1_000);
  expect(ms).toBeLessThan(10_000);
});

test("it leaves when the coordinator has released it", async () => {
  const { close, session } = await startBusyWorker(60);
  setTimeout(() => session.send({ release: { epoch: { term: 1, plan: 1 }, reason: "over" } }), 300);
  const ms = await close();
  expect(ms).toBeGreaterThan(250);
  expect(ms).toBeLessThan(5_000);
});

test("it leaves when the coordinator is gone", async () => {
  const { close, coordinator } = await startBusyWorker(60);
  setTimeout(() => coordinator.stop(), 300);
  expect(await close()).toBeLessThan(8_000);
});

test("it leaves when somebody hurries it", async () => {
  const { close, worker } = await startBusyWorker(60);
  setTimeout(() => worker.hurry(), 300);
  const ms = await close();
  expect(ms).toBeGreaterThan(250);
  expect(ms).toBeLessThan(5_000);
});

test("it does not wait without work, nor without the option", async () => {
  const idle = await startLinkedWorker();
  const begun = performance.now();
  await idle.worker.close("maintenance");
  expect(performance.now() - begun).toBeLessThan(3_000);
});
