import { expect, test } from "vitest";
import { Backoff, controlChannelOptions, linkChannelOptions, pause } from "../../../common/grpc.js";

test("delays double up to the last, and a success starts them again", () => {
  const backoff = new Backoff(100, 2_000);
  const delays = Array.from({ length: 7 }, () => backoff.next());
  expect(delays).toEqual([100, 200, 400, 800, 1_600, 2_000, 2_000]);
  backoff.reset();
  expect(backoff.next()).toBe(100);
});

test("a pause ends at once when it is given up", async () => {
  const controller = new AbortController();
  const waiting = pause(60_000, controller.signal);
  controller.abort();
  await waiting;
  await pause(60_000, controller.signal);
});

test("a peer whose event loop stalls for seconds is not taken for a dead one", () => {
  for (const options of [controlChannelOptions, linkChannelOptions]) {
    expect(options["grpc.keepalive_timeout_ms"]).toBeGreaterThanOrEqual(20_000);
  }
});
