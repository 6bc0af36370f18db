/** Whatever bytes come as a message: an answer or an error that names the client's fault, never ours. */
import { status } from "@grpc/grpc-js";
import fc from "fast-check";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Api } from "../../../coordinator/api/server.js";
import type { GenerateRequest } from "../../../proto/generated/glm/relay/v1/GenerateRequest.js";
import { inferenceDefinition, inferenceName } from "../../../proto/public.js";
import { answerOf, GrpcClient, trailers } from "../../support/grpc-client.js";
import { ScriptedService, saying, startApi } from "./support.js";

const service = new ScriptedService();
let api: Api;
let client: GrpcClient;
beforeAll(async () => {
  service.script = saying("hello");
  api = await startApi(service, {}, undefined, undefined, 0);
  client = new GrpcClient(api.grpcAddress!);
});
afterAll(async () => {
  client.close();
  await api.close();
});

const theClients = new Set([
  status.OK,
  status.INVALID_ARGUMENT,
  status.NOT_FOUND,
  status.RESOURCE_EXHAUSTED,
  status.UNIMPLEMENTED,
]);

async function expectTheClients(method: string, bytes: Uint8Array): Promise<void> {
  const { responseDeserialize } = inferenceDefinition.Generate;
  const path = `/${inferenceName}/${method}`;
  const same = (sent: Buffer) => sent;
  const call = client.inference.makeServerStreamRequest(path, same, responseDeserialize, Buffer.from(bytes));
  const { status: ended } = await answerOf(call);
  expect(theClients, `${status[ended.code]}: ${ended.details}`).toContain(ended.code);
  if (ended.code !== status.OK) expect(trailers(ended)).toHaveProperty("glm-relay-code");
}

const text = fc.string({ unit: "binary", maxLength: 12 });
const number = fc.oneof(fc.integer({ min: -3, max: 40 }), fc.integer({ min: -(2 ** 31), max: 2 ** 31 - 1 }));
const float = fc.oneof(fc.double({ min: 0, max: 2, noNaN: true }), fc.double());
const request: fc.Arbitrary<GenerateRequest> = fc.record(
  {
    model: fc.oneof(fc.constant("default"), text),
    prompt: text,
    prompt_token_ids: fc.array(fc.nat(300), { maxLength: 4 }),
    messages: fc.array(
      fc.record(
        {
          role: fc.oneof(fc.constantFrom("user", "assistant", "tool", "system"), text),
          content: text,
          reasoning_content: text,
          tool_calls: fc.array(fc.record({ id: text, function: fc.record({ name: text, arguments: text }) })),
        },
        { requiredKeys: ["role"] },
      ),
      { maxLength: 3 },
    ),
    max_tokens: number,
    temperature: float,
    top_p: float,
    top_k: number,
    min_p: float,
    seed: fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map(String),
    n: number,
    stop: fc.array(text, { maxLength: 3 }),
    stop_token_ids: fc.array(fc.nat(300), { maxLength: 3 }),
    logprobs: number,
    min_tokens: number,
    echo: fc.boolean(),
    attention_mode: fc.oneof(fc.constantFrom("causal", "prefix"), text),
    tools: fc.array(fc.record({ function: fc.record({ name: text, parameters: fc.json() }) }), {
      maxLength: 2,
    }),
    tool_choice: fc.oneof(fc.constantFrom("none", "auto"), text),
    chat_template_kwargs: fc.oneof(fc.json(), text),
  },
  { requiredKeys: [] },
);

test("requests of every kind", async () => {
  await fc.assert(
    fc.asyncProperty(request, (sent) =>
      expectTheClients("Generate", inferenceDefinition.Generate.requestSerialize(sent)),
    ),
    { numRuns: 400 },
  );
}, 60_000);

test("messages with some bytes changed, and bytes of no kind", async () => {
  const changed = fc
    .tuple(request, fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }))
    .map(([sent, changes]) => {
      const bytes = Uint8Array.from(inferenceDefinition.Generate.requestSerialize(sent));
      for (const [at, byte] of changes) if (bytes.length > 0) bytes[at % bytes.length] = byte;
      return bytes;
    });
  const method = fc.constantFrom("Generate", "Cancel", "ListModels");
  await fc.assert(
    fc.asyncProperty(method, fc.oneof(changed, fc.uint8Array({ maxLength: 40 })), expectTheClients),
    { numRuns: 400 },
  );
}, 60_000);
