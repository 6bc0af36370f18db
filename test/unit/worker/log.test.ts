/** A request can be followed on a worker by its name, which comes with the first rows of a sequence. */
import { expect, test } from "vitest";
import { bytesFromInt32 } from "../../../common/bytes.js";
import { LogLines } from "../../support/log-lines.js";
import { LinkClient } from "./support/link-client.js";
import { startLinkedWorker } from "./support/start.js";
import { greedy, headerOf, rowsOf, stepOf } from "./support/steps.js";

async function linked(level: string) {
  const lines = new LogLines(level);
  const { engine, worker, session, link } = await startLinkedWorker({ log: lines.log });
  const results = new LinkClient(worker.address);
  await results.opened();
  return { engine, lines, session, link, results };
}

const first = (sequence: number, requestId: string) =>
  rowsOf(sequence, [3], { requestId, newBlocks: bytesFromInt32([sequence]), sampling: greedy });
const next = (sequence: number) => rowsOf(sequence, [3], { validLength: 1, sampling: greedy });

test("the first rows of a sequence are a line at debug level, later ones are none", async () => {
  const { lines, link, results } = await linked("debug");
  link.send(stepOf(headerOf(1, [first(1, "req-a"), first(2, "req-b")])));
  link.send(stepOf(headerOf(2, [next(1), next(2)])));
  await results.frames.next(({ result }) => result?.step === 2);
  expect(lines.of("first rows of a sequence")).toMatchObject([
    { requestId: "req-a", sequence: 1, step: 1, rows: 1, stage: 0 },
    { requestId: "req-b", sequence: 2, step: 1, rows: 1, stage: 0 },
  ]);
});

test("steps leave no line at the usual level", async () => {
  const { lines, link, results } = await linked("info");
  const before = lines.all.length;
  link.send(stepOf(headerOf(1, [first(1, "req-a")])));
  link.send(stepOf(headerOf(2, [next(1)])));
  await results.frames.next(({ result }) => result?.step === 2);
  expect(lines.all.slice(before)).toEqual([]);
});

test("a value that is not finite names the request, many steps after its first rows", async () => {
  const { engine, lines, link, results } = await linked("info");
  link.send(stepOf(headerOf(1, [first(1, "req-a")])));
  await results.frames.next(({ result }) => result?.step === 1);
  engine.spoilNextStep();
  link.send(stepOf(headerOf(2, [next(1)])));
  await results.frames.next(({ result }) => result?.step === 2);
  expect(lines.of("a value is not finite (NaN or infinity)")).toMatchObject([
    { requestId: "req-a", sequence: 1, stage: 0 },
  ]);
});

test("a stage that fails names the requests of the step it was at", async () => {
  const { engine, lines, session, link, results } = await linked("info");
  link.send(stepOf(headerOf(1, [first(1, "req-a"), first(2, "req-b")])));
  await results.frames.next(({ result }) => result?.step === 1);
  engine.failNextStep("out of workspace");
  link.send(stepOf(headerOf(2, [next(2), first(3, "req-c")])));
  await session.state("FAILED");
  expect(lines.of("stage failed")).toMatchObject([
    { requestIds: ["req-b", "req-c"], err: { code: "stage_failed", message: "out of workspace" } },
  ]);
});
