import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { describe, expect, it, onTestFinished } from "vitest";
import { eventually, fixture, isRunning, scratch } from "./support.js";

function startParent(dataDir: string, children: number): { parent: ChildProcess; line: Promise<string> } {
  const parent = spawn(process.execPath, [fixture("parent.mjs"), dataDir, String(children)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  onTestFinished(() => void parent.kill("SIGKILL"));
  const lines = createInterface({ input: parent.stdout! });
  return { parent, line: new Promise((resolve) => lines.once("line", resolve)) };
}

const pidsOf = (line: string) => line.split(" ").slice(1).map(Number);

describe("the watchdog", () => {
  it("ends every child of a parent that was killed, also one that ignores SIGTERM and one that is stopped", async () => {
    const { parent, line } = startParent(scratch(), 3);
    const pids = pidsOf(await line);
    expect(pids.map(isRunning)).toEqual([true, true, true]);
    process.kill(pids[1]!, "SIGSTOP");
    parent.kill("SIGKILL");
    await eventually(() => !pids.some(isRunning), 8_000);
  });

  it("holds the data directory until the last child is gone, then lets the next run have it", async () => {
    const dataDir = scratch();
    const first = startParent(dataDir, 1);
    const [stubborn] = pidsOf(await first.line);
    first.parent.kill("SIGKILL");
    const second = await startParent(dataDir, 1).line;
    expect(second).toMatch(/^pids /);
    expect(isRunning(stubborn!)).toBe(false);
  });

  it("refuses a directory that another run uses", async () => {
    const dataDir = scratch();
    await startParent(dataDir, 1).line;
    const second = await startParent(dataDir, 1).line;
    expect(second).toBe(
      `refused another glm-relay uses ${dataDir}: choose another --data, or end the other one`,
    );
  });
}, 20_000);
