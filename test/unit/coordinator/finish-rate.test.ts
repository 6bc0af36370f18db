/** When a client that found the queue full is told to come back. */
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { requestId } from "../../../common/ids.js";
import {
  FinishRate,
  retryAfterLeastS,
  retryAfterMostS,
  retryAfterUnknownS,
} from "../../../coordinator/finish-rate.js";
import { FakeCluster, generation } from "../../support/fake-cluster.js";

/** One finishes every `everyMs`, while others wait. */
function finishing(rate: FinishRate, fromMs: number, everyMs: number, count: number): number {
  rate.note(fromMs, 10);
  for (let n = 1; n <= count; n++) rate.note(fromMs + n * everyMs, 10, 1);
  return fromMs + count * everyMs;
}

describe("the rate at which sequences finish", () => {
  it("is unknown before one has", () => {
    const rate = new FinishRate();
    expect(rate.retryAfterS(0, 1)).toBe(retryAfterUnknownS);
    rate.note(0, 5);
    expect(rate.retryAfterS(60_000, 1)).toBe(retryAfterUnknownS);
  });

  it("says when so many will have finished", () => {
    const rate = new FinishRate();
    const nowMs = finishing(rate, 1_000, 500, 400);
    expect(rate.retryAfterS(nowMs, 20)).toBeCloseTo(10, 0);
    expect(rate.retryAfterS(nowMs, 100)).toBeCloseTo(50, -1);
  });

  it("is right from the first ones on", () => {
    const rate = new FinishRate();
    const nowMs = finishing(rate, 0, 2_000, 3);
    expect(rate.retryAfterS(nowMs, 5)).toBeCloseTo(10, 0);
  });

  it("follows a change, and forgets what was long ago", () => {
    const rate = new FinishRate();
    const slowMs = finishing(rate, 0, 100, 600);
    const nowMs = finishing(rate, slowMs, 5_000, 60);
    expect(rate.retryAfterS(nowMs, 4)).toBeGreaterThan(18);
    expect(rate.retryAfterS(nowMs, 4)).toBeLessThan(22);
  });

  it("grows when nothing finishes any more", () => {
    const rate = new FinishRate();
    const nowMs = finishing(rate, 0, 500, 100);
    const later = [0, 10_000, 60_000].map((ms) => rate.retryAfterS(nowMs + ms, 10));
    expect(later[0]).toBeLessThan(later[1]!);
    expect(later[1]).toBeLessThan(later[2]!);
    expect(rate.retryAfterS(nowMs + 3_600_000, 10)).toBe(retryAfterMostS);
  });

  it("does not take a quiet night for a slow cluster", () => {
    const rate = new FinishRate();
    const eveningMs = finishing(rate, 0, 500, 100);
    rate.note(eveningMs, 0);
    const morningMs = eveningMs + 12 * 3_600_000;
    rate.note(morningMs, 10);
    expect(rate.retryAfterS(morningMs, 20)).toBeCloseTo(10, 0);
  });

  it("is within its range, whatever happens", () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.integer({ min: 0, max: 10_000_000 }), fc.nat({ max: 3 }), fc.nat({ max: 3 })), {
          maxLength: 50,
        }),
        fc.integer({ min: 1, max: 10_000 }),
        (events, count) => {
          const rate = new FinishRate();
          let nowMs = 0;
          for (const [waitMs, open, finished] of events) {
            nowMs += waitMs;
            rate.note(nowMs, open, finished);
            const seconds = rate.retryAfterS(nowMs, count);
            expect(seconds).toBeGreaterThanOrEqual(retryAfterLeastS);
            expect(seconds).toBeLessThanOrEqual(retryAfterMostS);
          }
        },
      ),
    );
  });
});

describe("a full queue", () => {
  const refusalOf = (cluster: FakeCluster, id: string) => {
    const [event, ...more] = cluster.events.get(requestId(id)) ?? [];
    expect(more).toEqual([]);
    if (event?.type !== "error") throw new Error(`${id} was not refused`);
    return event.error;
  };

  it("refuses what is above the limit, and says when that will have gone", () => {
    const cluster = new FakeCluster({ queueLimit: 4 });
    cluster.start();
    // Four at a time, each answered within 10 s: one per 2.5 s.
    for (let round = 0; round < 12; round++) {
      for (let n = 0; n < 4; n++) cluster.core.admit(generation(`r${round}-${n}`, [n], { maxTokens: 2 }));
      cluster.nowMs += 10_000;
      cluster.answerAll();
    }
    for (let n = 0; n < 4; n++) cluster.core.admit(generation(`last-${n}`, [n], { maxTokens: 2 }));
    cluster.core.admit(generation("one more", [1]));
    const { seed = "", promptTokens = [] } = generation("", [1]).choices[0]!;
    const four = Array.from({ length: 4 }, () => ({ promptTokens, seed }));
    cluster.core.admit({ ...generation("four more", [1]), choices: four });
    const [one, all] = [refusalOf(cluster, "one more"), refusalOf(cluster, "four more")];
    expect(one).toMatchObject({ code: "queue_full", httpStatus: 429, retryable: true });
    expect(one.message).toBe("4 sequences are waiting or running, and 1 more would be above the limit of 4");
    expect(one.retryAfterS).toBeGreaterThan(2);
    expect(one.retryAfterS).toBeLessThan(3);
    expect(all.retryAfterS).toBeCloseTo(4 * one.retryAfterS!, 6);
    expect(cluster.ended).toContain("one more");
    cluster.answerAll();
    cluster.core.admit(generation("now", [1], { maxTokens: 2 }));
    cluster.answerAll();
    expect(cluster.tokensOf("now")).toHaveLength(2);
  });

  it("keeps half of itself for interactive requests", () => {
    const cluster = new FakeCluster({ queueLimit: 6 });
    cluster.start();
    const of = (n: number, ofClass: "interactive" | "batch") => ({
      ...generation(`r${n}`, [n]),
      class: ofClass,
    });
    for (let n = 0; n < 4; n++) cluster.core.admit(of(n, "batch"));
    expect(refusalOf(cluster, "r3").message).toBe(
      "3 batch sequences are waiting or running, and 1 more would be above the limit of 3",
    );
    for (let n = 4; n < 8; n++) cluster.core.admit(of(n, "interactive"));
    expect(refusalOf(cluster, "r7").message).toMatch(/^6 sequences are waiting/);
    cluster.answerAll();
    cluster.core.admit(of(8, "batch"));
    cluster.answerAll();
    expect(cluster.tokensOf("r8")).toHaveLength(8);
    // Interactive requests may fill it.
    for (let n = 10; n < 17; n++) cluster.core.admit(of(n, "interactive"));
    expect(refusalOf(cluster, "r16").message).toMatch(/^6 sequences are waiting/);
  });

  it("gives lines of batches no place: they are not refused, and nobody is refused for them", () => {
    const cluster = new FakeCluster({ queueLimit: 2 });
    cluster.start();
    for (let n = 0; n < 6; n++) cluster.core.admitLine({ ...generation(`line${n}`, [n]), class: "batch" });
    for (let n = 0; n < 2; n++) cluster.core.admit(generation(`r${n}`, [n]));
    cluster.core.admit(generation("one more", [1]));
    expect(refusalOf(cluster, "one more").message).toMatch(/^2 sequences are waiting/);
    cluster.core.cancel(requestId("line5"));
    cluster.answerAll();
    for (let n = 0; n < 5; n++) expect(cluster.tokensOf(`line${n}`)).toHaveLength(8);
    for (let n = 2; n < 4; n++) cluster.core.admit(generation(`r${n}`, [n]));
    cluster.core.admit(generation("again one more", [1]));
    expect(refusalOf(cluster, "again one more").code).toBe("queue_full");
    cluster.answerAll();
    expect(cluster.tokensOf("r3")).toHaveLength(8);
  });

  it("counts no answer for those that were cancelled", () => {
    const cluster = new FakeCluster({ queueLimit: 1 });
    cluster.start();
    for (let n = 0; n < 50; n++) {
      cluster.core.admit(generation(`r${n}`, [n]));
      cluster.core.cancel(requestId(`r${n}`));
    }
    cluster.core.admit(generation("runs", [1]));
    cluster.core.admit(generation("one more", [1]));
    expect(refusalOf(cluster, "one more").retryAfterS).toBe(retryAfterUnknownS);
  });
});
