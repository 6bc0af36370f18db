/** The life of one Generate call: read the request, submit it, follow its events and write them. */
import type { ServerWritableStream } from "@grpc/grpc-js";
import { RelayError } from "../../../common/errors.js";
import { maxBodyBytes } from "../../../common/limits.js";
import type { GenerateResponse } from "../../../proto/generated/glm/relay/v1/GenerateResponse.js";
import { bytesAs } from "../body.js";
import type { ApiContext } from "../context.js";
import { bodyTooLarge } from "../errors.js";
import { clientLeft, follow, Presence } from "../follow.js";
import { tokenNames } from "../logprobs.js";
import { type RequestHeaders, readRequestHeaders } from "../request-headers.js";
import { inTurns } from "../turns.js";
import { UsageCounter } from "../usage.js";
import { CallRecord } from "./record.js";
import { Responses } from "./response.js";
import { toStatus } from "./status.js";
import { MessageWriter } from "./writer.js";

export type GenerateCall = ServerWritableStream<Uint8Array, GenerateResponse>;

/** Answers the call, in one way or another; never rejects. */
export async function generate(context: ApiContext, call: GenerateCall): Promise<void> {
  const client = new Presence();
  call.once("cancelled", () => client.leave(reasonOf(call)));
  const record = new CallRecord(context, "Generate", call);
  try {
    await answer(context, call, client, record);
    record.end();
  } catch (cause) {
    const error = record.end(cause);
    if (error !== null && !call.cancelled) call.emit("error", toStatus(error));
  }
}

async function answer(
  context: ApiContext,
  call: GenerateCall,
  client: Presence,
  record: CallRecord,
): Promise<void> {
  const { service } = context;
  if (call.request.length > maxBodyBytes) throw bodyTooLarge();
  const headers = readRequestHeaders((name) => call.metadata.get(name).map(String), record.arrivedMs);
  // A copy, since what came may lie in memory that others use and this may move to a thread.
  const read = await bytesAs(service, new Uint8Array(call.request), "generate", false);
  client.check();
  const { n, asTokenIds, options } = read;
  const generation = {
    ...read.generation,
    ...headers,
    ...earlierDeadline(call, headers.deadlineMs),
    logId: record.requestId,
    answer: { n, asTokenIds, options },
  };
  const times = { arrivedMs: record.arrivedMs, submittedMs: performance.now() };
  const usage = new UsageCounter(generation.choices, read.n);
  record.answered = { completionId: generation.id, usage };
  const forget = context.running.add(generation.id, client);
  try {
    const handle = await service.submit(generation);
    const metrics = context.metrics.startCall(generation, read.n, times);
    const responses = new Responses(service, generation, read, tokenNames(service.prompt, false));
    const writer = new MessageWriter(call, client, context.timing.stalledClientMs);
    // Not waited for: from here on the request is followed, so that it ends when its client leaves.
    if (client.end === null) call.write(responses.accepted(usage));
    for await (const event of follow(handle, generation.choices.length, client, metrics)) {
      usage.note(event);
      const messages = responses.of(event);
      // The scores of a prompt come all at once; everything else is a token's worth of work.
      for await (const message of event.type === "prompt" ? inTurns(messages) : messages) {
        await writer.write(message);
      }
    }
    await writer.write(responses.finished(usage));
    await writer.end();
  } finally {
    forget();
  }
}

/** gRPC has a deadline of its own; a call without one has it at no time. */
function earlierDeadline(call: GenerateCall, named: number | undefined): Pick<RequestHeaders, "deadlineMs"> {
  const deadlineMs = Math.min(Number(call.getDeadline()), named ?? Number.POSITIVE_INFINITY);
  return Number.isFinite(deadlineMs) ? { deadlineMs } : {};
}

/** A client knows its deadline first and leaves then; the way here takes a moment. */
const deadlineToleranceMs = 50;

/** At the deadline grpc-js or the client ends the call, and both are told like a client that left. */
function reasonOf(call: GenerateCall): RelayError {
  return Number(call.getDeadline()) <= Date.now() + deadlineToleranceMs
    ? new RelayError("deadline_exceeded", "the deadline of the call passed before its answer was complete")
    : clientLeft();
}
