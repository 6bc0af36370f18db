import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it, onTestFinished } from "vitest";
import { nextDelayMs, type Readiness, restartBackoff, Supervisor } from "../../../cli/supervisor.js";
import { eventually, fixture, isRunning, scratch } from "./support.js";

const fast = { firstMs: 20, maxMs: 80, resetAfterMs: 60_000 };

function supervise(mode: string, ready: Readiness = { by: "line", prefix: "ready " }, backoff = fast) {
  const directory = scratch();
  const record = join(directory, "record");
  writeFileSync(record, "");
  const losses: { how: string; delayMs: number }[] = [];
  const pids: number[] = [];
  const supervisor = new Supervisor(
    {
      name: "child",
      command: process.execPath,
      args: () => [fixture("child.mjs"), mode, record],
      logFile: join(directory, "child.log"),
      ready,
    },
    {
      started: (pid) => pids.push(pid),
      ended: () => undefined,
      lost: (how, delayMs) => losses.push({ how, delayMs }),
    },
    backoff,
  );
  onTestFinished(() => supervisor.kill());
  const starts = () => readFileSync(record, "utf8").match(/^start/gm)?.length ?? 0;
  return { supervisor, losses, pids, record, starts, log: join(directory, "child.log") };
}

describe("the pause before a restart", () => {
  it("doubles from 0.2 s to 5 s and begins anew after 30 s of health", () => {
    const delays: number[] = [];
    for (let i = 0; i < 7; i++) delays.push(nextDelayMs(delays.at(-1) ?? null, 1_000, restartBackoff));
    expect(delays).toEqual([200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
    expect(nextDelayMs(5_000, 29_999, restartBackoff)).toBe(5_000);
    expect(nextDelayMs(5_000, 30_000, restartBackoff)).toBe(200);
  });
});

describe("the supervisor", () => {
  it("tells readiness once, with the line, and restarts a child that was killed", async () => {
    const { supervisor, losses, pids, log } = supervise("wait");
    supervisor.start();
    expect(await supervisor.firstReady).toBe("ready wait");
    process.kill(pids[0]!, "SIGKILL");
    await eventually(() => pids.length === 2);
    expect(losses).toEqual([{ how: "SIGKILL", delayMs: 20 }]);
    expect(supervisor.pid).toBe(pids[1]);
    await eventually(() => readFileSync(log, "utf8") === "ready wait\nready wait\n");
  });

  it("restarts with growing pauses a child that was ready once and keeps crashing", async () => {
    const { supervisor, losses } = supervise("crash");
    supervisor.start();
    await eventually(() => losses.length >= 5, 10_000);
    expect(losses.slice(0, 5).map((loss) => loss.delayMs)).toEqual([20, 40, 80, 80, 80]);
    expect(losses[0]!.how).toBe("exit status 3");
    await supervisor.stop(1_000);
    const count = losses.length;
    await new Promise((resolve) => setTimeout(resolve, 150));
    expect(losses.length).toBe(count);
  });

  it("does not restart a child that ends by itself before it was ready, and repeats its reason", async () => {
    const { supervisor, losses, starts, log } = supervise("refuse");
    supervisor.start();
    await expect(supervisor.firstReady).rejects.toThrow(
      `child: no model in /nowhere [invalid_model] (log: ${log})`,
    );
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(starts()).toBe(1);
    expect(losses).toEqual([]);
    expect(supervisor.pid).toBeNull();
    await supervisor.stop(1_000);
  });

  it("repeats what a child says that was called wrongly", async () => {
    const { supervisor, log } = supervise("misuse");
    supervisor.start();
    await expect(supervisor.firstReady).rejects.toThrow(
      `child: there is no option --no-model [invalid_configuration] (log: ${log})`,
    );
  });

  it("gives a child that is killed before it was ready five lives", async () => {
    const { supervisor, losses, starts } = supervise("die");
    supervisor.start();
    await expect(supervisor.firstReady).rejects.toThrow(/child: SIGKILL \(log: /);
    expect(starts()).toBe(5);
    expect(losses.length).toBe(4);
  });

  it("says that a program does not exist", async () => {
    const directory = scratch();
    const supervisor = new Supervisor(
      {
        name: "ghost",
        command: "/nonexistent/program",
        args: () => [],
        logFile: join(directory, "ghost.log"),
        ready: { by: "owner" },
      },
      { started: () => undefined, ended: () => undefined, lost: () => undefined },
    );
    supervisor.start();
    await expect(supervisor.firstReady).rejects.toThrow(/ghost: cannot start: .*ENOENT/);
  });

  it("asks first and kills a child that does not listen", async () => {
    const polite = supervise("wait");
    polite.supervisor.start();
    await polite.supervisor.firstReady;
    await polite.supervisor.stop(5_000);
    expect(readFileSync(polite.record, "utf8")).toMatch(/^term/m);

    const stubborn = supervise("stubborn");
    stubborn.supervisor.start();
    await stubborn.supervisor.firstReady;
    const beginMs = performance.now();
    await stubborn.supervisor.stop(300);
    expect(performance.now() - beginMs).toBeGreaterThanOrEqual(290);
    expect(isRunning(stubborn.pids[0]!)).toBe(false);
    expect(stubborn.losses).toEqual([]);
  });

  it("kills at once while it is already asking", async () => {
    const { supervisor, pids } = supervise("stubborn");
    supervisor.start();
    await supervisor.firstReady;
    const stopped = supervisor.stop(60_000);
    supervisor.kill();
    await stopped;
    expect(isRunning(pids[0]!)).toBe(false);
  });

  it("starts no new life when it is stopped in the pause before one", async () => {
    const { supervisor, pids, losses, starts } = supervise("wait", undefined, { ...fast, firstMs: 300 });
    supervisor.start();
    await supervisor.firstReady;
    process.kill(pids[0]!, "SIGKILL");
    await eventually(() => losses.length === 1);
    await supervisor.stop(1_000);
    await new Promise((resolve) => setTimeout(resolve, 400));
    expect(starts()).toBe(1);
  });

  it("asks a probe until it answers yes", async () => {
    let asked = 0;
    const { supervisor } = supervise("wait", {
      by: "probe",
      limitMs: 5_000,
      probe: async () => ++asked === 3,
    });
    supervisor.start();
    await supervisor.firstReady;
    expect(asked).toBe(3);
  });
});
