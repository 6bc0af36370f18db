import { describe, expect, it } from "vitest";
import { Leases, tickMs } from "../../../coordinator/membership/leases.js";

/** Checks every tickMs from `fromMs` on; returns when which key was declared lost. */
function run(leases: Leases<string>, fromMs: number, toMs: number, at: (nowMs: number) => void = () => {}) {
  const lost: [string, number][] = [];
  for (let now = fromMs; now <= toMs; now += tickMs) {
    at(now);
    for (const key of leases.check(now)) {
      lost.push([key, now]);
      leases.end(key);
    }
  }
  return lost;
}

describe("leases", () => {
  it("end two seconds after the last heartbeat", () => {
    const leases = new Leases<string>(0);
    leases.start("a", 0);
    expect(run(leases, tickMs, 5_000)).toEqual([["a", 2_100]]);
  });

  it("are renewed while the worker is idle or its progress moves", () => {
    const leases = new Leases<string>(0);
    leases.start("idle", 0);
    leases.start("busy", 0);
    const lost = run(leases, tickMs, 10_000, (now) => {
      if (now % 500 !== 0) return;
      leases.heartbeat("idle", 7, false, now);
      leases.heartbeat("busy", now, true, now);
    });
    expect(lost).toEqual([]);
  });

  it("are not renewed by a worker that is busy and does not move", () => {
    const leases = new Leases<string>(0);
    leases.start("hung", 0);
    const lost = run(leases, tickMs, 6_000, (now) => {
      if (now % 500 === 0) leases.heartbeat("hung", 42, true, now);
    });
    expect(lost).toEqual([["hung", 2_600]]); // the first of these heartbeats still moved the counter
  });

  it("are longer by the time for which the coordinator itself stood still", () => {
    const leases = new Leases<string>(0);
    leases.start("a", 0);
    leases.start("b", 0);
    expect(leases.check(3_000)).toEqual([]);
    leases.heartbeat("a", 1, false, 3_010);
    expect(run(leases, 3_100, 5_000)).toEqual([["b", 5_000]]);
  });

  it("declare at most one worker lost right after a long stall", () => {
    const leases = new Leases<string>(0);
    for (const key of ["a", "b", "c"]) leases.start(key, -5_000);
    expect(leases.check(1_000)).toHaveLength(1);
    expect(leases.check(1_100)).toHaveLength(3);
  });
});
