/** What the tests of `batch` share: lines of an input, and a coordinator whose batches end when the test says so. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { gunzipSync } from "node:zlib";
import { onTestFinished } from "vitest";
import { type BatchObject, isFinal } from "../../../../coordinator/batches/batch.js";
import { lineId } from "../../../../coordinator/batches/line-id.js";

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
    body: { prompt: [1, 2], max_tokens: 1, ...body },
  };
}

export const jsonl = (lines: unknown[]) => lines.map((line) => `${JSON.stringify(line)}\n`).join("");

/** A line of the output, or with a status that is an error of the error file. */
export function answerLine(batchId: string, number: number, customId: string, status = 200): object {
  const usage = { prompt_tokens: 2, completion_tokens: 3, total_tokens: 5 };
  const body =
    status === 200
      ? { id: `cmpl-${customId}`, usage }
      : { error: { message: `${customId} is bad`, code: "invalid_value" } };
  return {
    id: lineId(batchId, number),
    custom_id: customId,
    response: { status_code: status, request_id: `req-${customId}`, body },
    error: null,
  };
}

type Fault = (request: IncomingMessage, response: ServerResponse) => boolean;

/** `/v1/files` and `/v1/batches` in memory. */
export class FakeCoordinator {
  readonly files = new Map<string, Buffer>();
  readonly batches: BatchObject[] = [];
  /** Bodies of POST /v1/batches. */
  readonly created: Record<string, unknown>[] = [];
  /** "GET /v1/batches/batch_0", in the order in which they came. */
  readonly requests: string[] = [];
  /** Answers in place of what is below where it returns true. */
  fault: Fault = () => false;
  /** Called when a batch was made: here the test may end it. */
  onCreate: (batch: BatchObject) => void = () => {};
  readonly #watchers = new Map<string, Set<() => void>>();
  #server: Server;

  private constructor(readonly port: number) {
    this.#server = this.#listener();
  }

  static async start(): Promise<FakeCoordinator> {
    const probe = createServer();
    await new Promise<void>((resolve) => probe.listen(0, "127.0.0.1", resolve));
    const { port } = probe.address() as { port: number };
    await new Promise((resolve) => probe.close(resolve));
    const fake = new FakeCoordinator(port);
    await fake.open();
    onTestFinished(() => fake.close());
    return fake;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Listens, again after `close`. */
  open(): Promise<void> {
    this.#server = this.#listener();
    return new Promise((resolve, reject) => {
      this.#server.once("error", reject);
      this.#server.listen(this.port, "127.0.0.1", resolve);
    });
  }

  /** As when the process is killed: connections break. */
  async close(): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve));
    this.#server.closeAllConnections();
    await closed;
  }

  change(batch: BatchObject, change: Partial<BatchObject>): void {
    Object.assign(batch, change);
    for (const changed of this.#watchers.get(batch.id) ?? []) changed();
  }

  /** Ends a batch with an answer for each line of its input. @param failing Ids of lines that get an error. */
  finish(batch: BatchObject, failing: string[] = [], status: BatchObject["status"] = "completed"): void {
    const answers: object[] = [];
    const errors: object[] = [];
    for (const [index, line] of this.inputOf(batch).split("\n").entries()) {
      if (line.trim() === "") continue;
      const { custom_id: id } = JSON.parse(line) as RequestLine;
      const failed = failing.includes(id);
      (failed ? errors : answers).push(answerLine(batch.id, index + 1, id, failed ? 400 : 200));
    }
    const keep = (lines: object[], name: string) => {
      if (lines.length === 0) return null;
      this.files.set(`${name}-${batch.id}`, Buffer.from(jsonl(lines)));
      return `${name}-${batch.id}`;
    };
    const count = answers.length;
    this.change(batch, {
      status,
      output_file_id: keep(answers, "out"),
      error_file_id: keep(errors, "err"),
      completed_at: 1_700_000_020,
      request_counts: { total: count + errors.length, completed: count, failed: errors.length },
      usage: usage(2 * count, 3 * count),
    });
  }

  inputOf(batch: BatchObject): string {
    const bytes = this.files.get(batch.input_file_id)!;
    return (bytes[0] === 0x1f ? gunzipSync(bytes) : bytes).toString("utf8");
  }

  #listener(): Server {
    return createServer((request, response) => {
      this.requests.push(`${request.method} ${request.url}`);
      if (this.fault(request, response)) return;
      this.#answer(request, response).catch(() => response.destroy());
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method, url = "" } = request;
    const [path = "", query = ""] = url.split("?");
    const [, , kind, id = "", action] = path.split("/");
    if (path === "/api/cluster") return respond(response, 200, {});
    if (kind === "files" && method === "POST") {
      const fileId = `file-${this.files.size}`;
      this.files.set(fileId, fileOf(await bodyOf(request)));
      return respond(response, 200, this.#file(fileId));
    }
    if (kind === "files") return this.#readFile(request, response, id, action === "content");
    if (kind === "batches" && method === "POST" && id === "") {
      return this.#create(JSON.parse((await bodyOf(request)).toString("utf8")), response);
    }
    if (kind === "batches" && id === "") return this.#list(new URLSearchParams(query), response);
    const batch = this.batches.find((each) => each.id === id);
    if (kind !== "batches" || batch === undefined) {
      return respond(response, 404, { error: { message: `id: "${id}" is not known`, code: "not_found" } });
    }
    if (action === "events") return this.#events(batch, response);
    if (action === "cancel") this.change(batch, { status: "cancelling" });
    respond(response, 200, batch);
  }

  #create(body: Record<string, unknown>, response: ServerResponse): void {
    const file = String(body.input_file_id);
    if (!this.files.has(file)) {
      respond(response, 404, { error: { message: `no file ${file}`, code: "not_found" } });
      return;
    }
    this.created.push(body);
    const batch: BatchObject = {
      ...emptyBatch(`batch_${this.batches.length}`),
      input_file_id: file,
      metadata: (body.metadata as Record<string, string>) ?? null,
    };
    this.batches.unshift(batch);
    respond(response, 200, batch);
    this.onCreate(batch);
  }

  #list(query: URLSearchParams, response: ServerResponse): void {
    const begin = this.batches.findIndex(({ id }) => id === query.get("after")) + 1;
    const end = begin + Number(query.get("limit"));
    const data = this.batches.slice(begin, end);
    respond(response, 200, { object: "list", data, has_more: end < this.batches.length });
  }

  #file(id: string): object {
    return { id, object: "file", bytes: this.files.get(id)!.length };
  }

  #readFile(request: IncomingMessage, response: ServerResponse, id: string, content: boolean): void {
    const bytes = this.files.get(id);
    if (bytes === undefined || !content) {
      if (bytes !== undefined) respond(response, 200, this.#file(id));
      else respond(response, 404, { error: { message: `no file ${id}`, code: "not_found" } });
      return;
    }
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    const rest = bytes.subarray(from);
    response.writeHead(from === 0 ? 200 : 206, { "content-length": rest.length });
    response.end(rest);
  }

  #events(batch: BatchObject, response: ServerResponse): void {
    response.writeHead(200, { "content-type": "text/event-stream" });
    const watchers = this.#watchers.get(batch.id) ?? new Set();
    this.#watchers.set(batch.id, watchers);
    const tell = () => {
      response.write(`data: ${JSON.stringify(batch)}\n\n`);
      if (!isFinal(batch.status)) return;
      watchers.delete(tell);
      response.end("data: [DONE]\n\n");
    };
    response.once("close", () => watchers.delete(tell));
    watchers.add(tell);
    tell();
  }
}

export function respond(
  response: ServerResponse,
  status: number,
  body: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(body));
}

const usage = (input: number, output: number): BatchObject["usage"] => ({
  input_tokens: input,
  input_tokens_details: { cached_tokens: 0 },
  output_tokens: output,
  output_tokens_details: { reasoning_tokens: 0 },
  total_tokens: input + output,
});

export function emptyBatch(id: string): BatchObject {
  return {
    id,
    object: "batch",
    endpoint: "/v1/completions",
    model: "glm-test",
    errors: null,
    input_file_id: "file-0",
    completion_window: "24h",
    status: "validating",
    output_file_id: null,
    error_file_id: null,
    created_at: 1_700_000_000,
    in_progress_at: null,
    expires_at: 1_700_086_400,
    finalizing_at: null,
    completed_at: null,
    failed_at: null,
    expired_at: null,
    cancelling_at: null,
    cancelled_at: null,
    request_counts: { total: 0, completed: 0, failed: 0 },
    usage: usage(0, 0),
    metadata: null,
    priority: 0,
    token_budget: null,
    webhook: null,
  };
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  const body = Buffer.concat(chunks);
  // A connection that broke is no request.
  if (!request.complete) throw new Error("cut off");
  return body;
}

/** The part named "file" of a form. */
function fileOf(form: Buffer): Buffer {
  const boundary = form.subarray(0, form.indexOf("\r\n"));
  const head = form.indexOf('name="file"');
  const begin = form.indexOf("\r\n\r\n", head) + 4;
  return Buffer.from(
    form.subarray(begin, form.indexOf(Buffer.concat([Buffer.from("\r\n"), boundary]), begin)),
  );
}
