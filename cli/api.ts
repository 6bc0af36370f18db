/** What the commands ask of a running coordinator over HTTP. */
import type { ClusterView } from "../coordinator/inference.js";
import { CommandError } from "./errors.js";
import { authorization } from "./secrets.js";
import { readServerSentEvents } from "./sse.js";

export interface ChatMessage {
  role: "system" | "user" | "assistant";
  content: string;
}

export interface ChatAnswer {
  text: string;
  completionTokens: number;
}

interface ChatChunk {
  error?: ApiError;
  choices?: { delta?: { content?: string | null } }[];
  usage?: { completion_tokens: number } | null;
}

export interface ApiError {
  message?: string;
  code?: string | null;
}

/** What a status request waits for an answer. */
const viewLimitMs = 5_000;

/** @param key Of a coordinator that has keys. */
export async function fetchCluster(url: string, key: string | null = null): Promise<ClusterView> {
  const signal = AbortSignal.timeout(viewLimitMs);
  const response = await request(`${url}/api/cluster`, { headers: authorization(key), signal });
  return (await response.json()) as ClusterView;
}

/**
 * Streams one answer.
 * @param onText Receives each piece of text as it arrives.
 * @param key Of a coordinator that has keys.
 * @throws CommandError for what the server refuses or breaks off; an AbortError when `signal` fires.
 */
export async function streamChat(
  url: string,
  body: { messages: ChatMessage[]; temperature?: number },
  onText: (text: string) => void,
  signal?: AbortSignal,
  key: string | null = null,
): Promise<ChatAnswer> {
  const response = await request(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization(key) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal: signal ?? null,
  });
  const answer: ChatAnswer = { text: "", completionTokens: 0 };
  try {
    for await (const data of readServerSentEvents(response.body!)) {
      if (data === "[DONE]") return answer;
      const chunk = JSON.parse(data) as ChatChunk;
      if (chunk.error) throw failure(chunk.error, "the answer broke off");
      const text = chunk.choices?.[0]?.delta?.content ?? "";
      if (text !== "") onText(text);
      answer.text += text;
      answer.completionTokens = chunk.usage?.completion_tokens ?? answer.completionTokens;
    }
  } catch (error) {
    throw signal?.aborted || error instanceof CommandError ? error : unreachable(url, error);
  }
  throw new CommandError(`${url} broke off in the middle of an answer`);
}

async function request(url: string, init: RequestInit): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(url, init);
  } catch (error) {
    throw init.signal?.aborted && (error as Error).name === "AbortError" ? error : unreachable(url, error);
  }
  if (response.ok) return response;
  const text = await response.text().catch(() => "");
  throw failure(parseError(text), `${url} answered with status ${response.status}`);
}

/** What an error response says; nothing when it is not one of ours. */
export function parseError(text: string): ApiError {
  try {
    return (JSON.parse(text) as { error?: ApiError }).error ?? {};
  } catch {
    return {};
  }
}

function failure(error: ApiError, otherwise: string): CommandError {
  return new CommandError(error.message ?? otherwise, error.code ?? null);
}

function unreachable(url: string, error: unknown): CommandError {
  // fetch hides the reason (ECONNREFUSED, a time-out) in the cause.
  const { cause, message } = error as Error & { cause?: { code?: string; message?: string } };
  return new CommandError(`no answer from ${url}: ${cause?.code ?? cause?.message ?? message}`);
}
