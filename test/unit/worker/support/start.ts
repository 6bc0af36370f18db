/** Starts workers that the test's end closes. */
import { onTestFinished } from "vitest";
import { createLogger } from "../../../../common/log.js";
import type { Engine } from "../../../../worker/stage/engine.js";
import { type RunningWorker, startWorker, type WorkerOptions } from "../../../../worker/worker.js";
import { FakeEngine } from "./fake-engine.js";
import { assignment, ScriptedCoordinator } from "./scripted-coordinator.js";

export async function startCoordinator(port = 0): Promise<ScriptedCoordinator> {
  const coordinator = await ScriptedCoordinator.start(port);
  onTestFinished(() => coordinator.stop());
  return coordinator;
}

export async function startTestWorker(
  coordinator: string,
  engine: Engine = new FakeEngine(),
  options: Partial<WorkerOptions> = {},
): Promise<RunningWorker> {
  const worker = await startWorker(
    {
      id: "worker-1",
      coordinator,
      listen: "127.0.0.1:0",
      memoryBytes: 1 << 30,
      threads: 1,
      log: createLogger("worker", "silent"),
      ...options,
    },
    engine,
  );
  onTestFinished(() => worker.close("the test is over"));
  return worker;
}

/** A worker that is linked to the test as its predecessor; who wants results opens a LinkClient. */
export async function startLinkedWorker(
  options: Partial<WorkerOptions> = {},
  changes: Parameters<typeof assignment>[1] = {},
) {
  const coordinator = await startCoordinator();
  const engine = new FakeEngine();
  const worker = await startTestWorker(coordinator.address, engine, options);
  const session = await coordinator.welcomed(1);
  session.send({ assign: assignment(coordinator, changes) });
  const link = await coordinator.links.next();
  link.open();
  await session.state("LINKED");
  return { coordinator, engine, worker, session, link };
}
