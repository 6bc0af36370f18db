import { status } from "@grpc/grpc-js";
import { expect, test } from "vitest";
import { fromStatus, invitesRetry } from "../../../common/grpc.js";
import { protocolVersion } from "../../../common/package.js";
import type { Hello__Output } from "../../../proto/generated/glm/relay/internal/v1/Hello.js";
import { Downstream, epochOver } from "../../../proto/link/downstream.js";
import { judgeHello } from "../../../proto/link/hello.js";

const epoch = { term: 2, plan: 5 };
const hello: Hello__Output = { protocolVersion, epoch, pipeline: 0, fromStage: 2, credits: 8 };
const plan = () => ({ epoch, pipeline: 0, stage: 1, downstream: new Downstream(epoch) });

test("the next stage of the current epoch is accepted", () => {
  expect(judgeHello(hello, plan(), epoch)).toBeNull();
});

test("a stage with a newer epoch may come again, as may one that finds no plan yet", () => {
  const early = judgeHello({ ...hello, epoch: { term: 2, plan: 6 } }, plan(), epoch)!;
  expect(early.code).toBe(status.FAILED_PRECONDITION);
  expect(invitesRetry(early)).toBe(true);
  expect(invitesRetry(judgeHello(hello, null, { term: 0, plan: 0 })!)).toBe(true);
});

test.each([
  [
    { protocolVersion: 9 },
    "version_mismatch",
    `protocol version 9 dialled protocol version ${protocolVersion}`,
  ],
  [{ epoch: { term: 2, plan: 4 } }, "stale_epoch", "epoch 2.4 is over here: the newest is 2.5"],
  [{ epoch: null }, "corrupt_message", "names no epoch"],
  [{ fromStage: 3 }, "invalid_configuration", "stage 3 of pipeline 0 dialled stage 1 of pipeline 0"],
  [{ pipeline: 1 }, "invalid_configuration", "stage 2 of pipeline 1 dialled stage 1 of pipeline 0"],
  [{ credits: 0 }, "invalid_configuration", "offers 0 credits"],
  [{ credits: 193 }, "invalid_configuration", "offers 193 credits: expected 1 to 192"],
])("a hello with %j is refused for good", (changes, code, message) => {
  const answer = judgeHello({ ...hello, ...changes }, plan(), epoch)!;
  expect(invitesRetry(answer)).toBe(false);
  expect(fromStatus(answer, "internal").code).toBe(code);
  expect(answer.details).toContain(message);
});

test("an epoch that is over is refused for good", () => {
  const over = plan();
  over.downstream.close(epochOver(epoch, 1));
  for (const gone of [over, null]) {
    expect(fromStatus(judgeHello(hello, gone, epoch)!, "internal").code).toBe("stale_epoch");
  }
});
