/**
 * Requests whose client is gone with the coordinator that accepted them: their answers are written as the client
 * would have got them in one piece, and kept for whoever asks for them by id (requests.ts).
 */
import { RelayError } from "../../common/errors.js";
import type { GenerationRequest, RequestHandle } from "../inference.js";
import type { Answer, AnswerEvent } from "./answer.js";
import { ChatAnswer, type ChatAnswerOptions } from "./chat-answer.js";
import { CompletionAnswer, type CompletionAnswerOptions } from "./completion-answer.js";
import type { ApiContext } from "./context.js";
import { errorBody, logFault, toClientError } from "./errors.js";
import { follow, Presence } from "./follow.js";
import { jsonText } from "./json-text.js";
import { maxKeptAnswerCharacters } from "./limits.js";
import { tokenNames } from "./logprobs.js";
import { createdS, requestObject } from "./requests.js";
import { inTurns } from "./turns.js";
import { UsageCounter } from "./usage.js";

/** They had a client in another process: their times say nothing, and their tokens were counted there in part. */
const noFigures = { note: () => {}, end: () => {} };

/** Follows every such request to its end. */
export function adoptOrphans(context: ApiContext): void {
  context.service.onOrphan((request, handle) => void adopt(context, request, handle));
}

/** Never rejects. */
async function adopt(context: ApiContext, request: GenerationRequest, handle: RequestHandle): Promise<void> {
  const { service, log, metrics } = context;
  const { id, logId } = request;
  let answer: string;
  try {
    answer = await whole(await responseTo(context, request, handle));
    metrics.orphanEnded("completed");
    log.info({ requestId: logId, completionId: id }, "a request of an earlier run is answered");
  } catch (cause) {
    const error = toClientError(cause, logId);
    logFault(log, error, logId);
    metrics.orphanEnded("failed");
    log.info({ requestId: logId, completionId: id, code: error.code }, "a request of an earlier run failed");
    answer = JSON.stringify(requestObject(request, "failed", { error: errorBody(error).error }));
  }
  service.keepAnswer(id, answer);
}

async function responseTo(
  context: ApiContext,
  request: GenerationRequest,
  handle: RequestHandle,
): Promise<object> {
  const client = new Presence();
  const forget = context.running.add(request.id, client);
  try {
    const usage = new UsageCounter(request.choices, request.answer!.n);
    const all: AnswerEvent[][] = request.choices.map(() => []);
    for await (const event of follow(handle, request.choices.length, client, noFigures)) {
      usage.note(event);
      all[event.choice]?.push(event);
    }
    const created = createdS(request.accepted);
    const response = { ...answerTo(context, request).response(all, usage.usage), created };
    return requestObject(request, "completed", { response });
  } finally {
    forget();
  }
}

/** As the request's own call would have made it. */
function answerTo({ service }: ApiContext, { id, endpoint, choices, answer }: GenerationRequest): Answer {
  const { options, asTokenIds } = answer!;
  const complete = { ...options, names: tokenNames(service.prompt, asTokenIds) };
  return endpoint === "chat"
    ? new ChatAnswer(service, id, choices, complete as ChatAnswerOptions)
    : new CompletionAnswer(service, id, choices, complete as CompletionAnswerOptions);
}

/** @throws RelayError not_supported for an answer that is too long to be kept. */
async function whole(value: object): Promise<string> {
  let text = "";
  for await (const piece of inTurns(jsonText(value))) {
    text += piece;
    if (text.length <= maxKeptAnswerCharacters) continue;
    const problem = `the answer is longer than the ${maxKeptAnswerCharacters} characters that are kept`;
    throw new RelayError("not_supported", problem);
  }
  return text;
}
