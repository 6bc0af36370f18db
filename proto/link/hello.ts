/**
 * The door of the Link service: reads the first message of a stream and decides whether the stage that
 * dials may receive from this one.
 */
import { type ServiceError, status } from "@grpc/grpc-js";
import { type ErrorCode, RelayError } from "../../common/errors.js";
import { notYet, toServiceError } from "../../common/grpc.js";
import { compareEpochs, type Epoch, formatEpoch } from "../../common/ids.js";
import { linkCredits } from "../../common/limits.js";
import { protocolVersion } from "../../common/package.js";
import type { Hello__Output } from "../generated/glm/relay/internal/v1/Hello.js";
import type { LinkRequest__Output } from "../generated/glm/relay/internal/v1/LinkRequest.js";
import type { Downstream, LinkCall } from "./downstream.js";

/** A stream that says nothing is ended, so that forgotten ones cannot pile up. */
const helloTimeoutMs = 5_000;

/** The plan whose frames may be received, as far as the door must know it. */
export interface ServedPlan {
  readonly epoch: Epoch;
  readonly pipeline: number;
  /** The serving stage; -1 for the coordinator, the predecessor of stage 0. */
  readonly stage: number;
  readonly downstream: Downstream;
}

/**
 * Judges a Hello.
 * @param plan   null while none is served here.
 * @param newest newest epoch known here.
 * @returns the answer with which to end the stream, or null to accept it. An answer without one of our
 *   codes lets the stage that dials come again.
 */
export function judgeHello(
  hello: Hello__Output,
  plan: ServedPlan | null,
  newest: Epoch,
): ServiceError | null {
  if (hello.protocolVersion !== protocolVersion) {
    return refuse(
      "version_mismatch",
      `protocol version ${hello.protocolVersion} dialled protocol version ${protocolVersion}: ` +
        "run the same release everywhere",
    );
  }
  if (hello.epoch === null) return refuse("corrupt_message", "hello names no epoch");
  const epoch = formatEpoch(hello.epoch);
  const order = compareEpochs(hello.epoch, newest);
  if (order > 0) return notYet(`epoch ${epoch} is not known here yet`);
  if (order < 0 || plan === null || plan.downstream.state === "closed") {
    return refuse("stale_epoch", `epoch ${epoch} is over here: the newest is ${formatEpoch(newest)}`);
  }
  if (hello.pipeline !== plan.pipeline || hello.fromStage !== plan.stage + 1) {
    return refuse(
      "invalid_configuration",
      `stage ${hello.fromStage} of pipeline ${hello.pipeline} dialled stage ${plan.stage} of pipeline ${plan.pipeline}`,
    );
  }
  if (hello.credits < 1 || hello.credits > linkCredits) {
    return refuse(
      "invalid_configuration",
      `hello offers ${hello.credits} credits: expected 1 to ${linkCredits}`,
    );
  }
  switch (plan.downstream.state) {
    case "waiting":
      return null;
    case "open":
      // Also when the stage that dials has just lost its connection and this end does not know yet.
      return notYet(`stage ${plan.stage} has a receiver in epoch ${epoch} already`);
    case "broken":
      return refuse("worker_lost", `a receiver of epoch ${epoch} left after frames were sent to it`);
  }
}

/**
 * Reads Hello and hands the stream to the plan, or ends it with the reason.
 * @param served The plan that serves the pipeline of this Hello, null for none, and its newest epoch known here.
 */
export function acceptLink(
  call: LinkCall,
  served: (hello: Hello__Output) => { plan: ServedPlan | null; newest: Epoch },
): void {
  const timer = setTimeout(() => {
    call.emit("error", { code: status.DEADLINE_EXCEEDED, details: `no hello within ${helloTimeoutMs} ms` });
  }, helloTimeoutMs);
  const forget = () => clearTimeout(timer);
  call.once("cancelled", forget);
  call.once("end", forget);
  call.once("data", (request: LinkRequest__Output) => {
    forget();
    const { hello } = request;
    if (hello == null) {
      call.emit("error", refuse("corrupt_message", "the first message of a link must be hello"));
      return;
    }
    const { plan, newest } = served(hello);
    const answer = judgeHello(hello, plan, newest);
    if (answer !== null) call.emit("error", answer);
    else plan?.downstream.attach(call, hello.credits);
  });
}

function refuse(code: ErrorCode, message: string): ServiceError {
  return toServiceError(new RelayError(code, message));
}
