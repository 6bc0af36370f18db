/** What the tests of `batch run` share: lines of both files, and a server that answers as it is told. */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import { onTestFinished } from "vitest";

export interface RequestLine {
  custom_id: string;
  method: string;
  url: string;
  body: Record<string, unknown>;
}

export function requestLine(id: string, body: Record<string, unknown> = {}): RequestLine {
  return {
    custom_id: id,
    method: "POST",
    url: "/v1/completions",
    body: { prompt: [1, 2], max_tokens: 1, user: id, ...body },
  };
}

export const jsonl = (lines: unknown[]) => lines.map((line) => `${JSON.stringify(line)}\n`).join("");

/** A line of the output with this status; status 0 stands for an error without a response. */
export function outputLine(id: string, status = 200): Record<string, unknown> {
  const usage = { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 };
  const body = status === 200 ? { id: `cmpl-${id}`, usage } : { error: { message: "no", code: "some_code" } };
  return {
    id: `batch_req_${id}`,
    custom_id: id,
    response: status === 0 ? null : { status_code: status, request_id: `req-${id}`, body },
    error: status === 0 ? { code: "connection_failed", message: "gone" } : null,
  };
}

/** Answers completions like the API; `answer` gets each body, whose `user` names the line. */
export async function serveCompletions(
  answer: (body: Record<string, unknown>, response: ServerResponse, request: IncomingMessage) => void,
): Promise<string> {
  const server = createServer(async (request: IncomingMessage, response) => {
    if (request.url === "/api/cluster") {
      response.end("{}");
      return;
    }
    let text = "";
    for await (const chunk of request) text += chunk;
    answer(JSON.parse(text) as Record<string, unknown>, response, request);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.close();
    server.closeAllConnections();
  });
  return `http://127.0.0.1:${(server.address() as { port: number }).port}`;
}

export function respond(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", "x-request-id": "req-test", ...headers });
  response.end(JSON.stringify(body));
}

export function complete(response: ServerResponse, id: unknown): void {
  respond(response, 200, { id: `cmpl-${String(id)}`, usage: { prompt_tokens: 2, completion_tokens: 3 } });
}
