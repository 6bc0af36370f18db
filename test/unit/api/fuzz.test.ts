import fc from "fast-check";
import { afterAll, beforeAll, expect, it } from "vitest";
import { errorKinds } from "../../../common/errors.js";
import { chatFields } from "../../../coordinator/api/chat-body.js";
import { completionFields } from "../../../coordinator/api/completion-body.js";
import type { Api } from "../../../coordinator/api/server.js";
import { unsupportedInChat, unsupportedInCompletions } from "../../../coordinator/api/unsupported.js";
import { get, ScriptedService, sseData, startApi } from "./support.js";

const runsPerEndpoint = 150;

let api: Api;
beforeAll(async () => {
  api = await startApi(new ScriptedService());
});
afterAll(() => api.close());

const scalar = fc.oneof(
  fc.integer({ min: -3, max: 500 }),
  fc.double(),
  fc.maxSafeInteger(),
  fc.boolean(),
  fc.constant(null),
  fc.string({ unit: "binary", maxLength: 8 }),
  fc.constantFrom("", "user", "text", "none", "\ud800", "\0", "NaN", "default", "__proto__"),
);
const anything = fc.oneof(
  { weight: 4, arbitrary: scalar },
  { weight: 1, arbitrary: fc.array(scalar, { maxLength: 4 }) },
  { weight: 1, arbitrary: fc.jsonValue({ maxDepth: 3 }) },
);
/** A tool or a call of one, mostly right. */
const called = (member: string, inner: string) =>
  fc.record({
    type: fc.oneof({ weight: 9, arbitrary: fc.constant("function") }, anything),
    [member]: fc.oneof({ weight: 9, arbitrary: fc.string({ maxLength: 3 }) }, anything),
    function: fc.record({
      name: fc.oneof({ weight: 9, arbitrary: fc.constantFrom("f", "g") }, anything),
      [inner]: fc.oneof({ weight: 9, arbitrary: fc.constantFrom("{}", "", {}) }, anything),
    }),
  });
const message = fc.oneof(
  {
    weight: 8,
    arbitrary: fc.record({
      role: fc.constantFrom("user", "assistant"),
      content: fc.string({ maxLength: 9 }),
    }),
  },
  fc.record({ role: anything, content: anything }, { requiredKeys: [] }),
  fc.record({
    role: fc.constantFrom("assistant", "tool", "user"),
    content: fc.constantFrom(null, "x"),
    tool_calls: fc.oneof(anything, fc.array(called("id", "arguments"), { maxLength: 2 })),
    tool_call_id: anything,
    reasoning_content: anything,
  }),
);
const goodPrompt = fc.oneof(
  fc.string({ maxLength: 9 }),
  fc.array(fc.integer({ min: 0, max: 256 }), { minLength: 1, maxLength: 5 }),
);

/** Bodies that are right but for a few fields, so that they get deep, and bodies that are anything. */
function bodies(fields: string[], required: Record<string, fc.Arbitrary<unknown>>) {
  const some = fc.dictionary(fc.oneof(fc.constantFrom(...fields), fc.string({ maxLength: 5 })), anything, {
    maxKeys: 3,
  });
  const nearly = fc.tuple(fc.record(required), some).map(([base, extra]) => ({ ...base, ...extra }));
  return fc.oneof(
    { weight: 6, arbitrary: nearly },
    { weight: 1, arbitrary: some },
    { weight: 1, arbitrary: fc.jsonValue() },
  );
}

const endpoints: [string, fc.Arbitrary<unknown>][] = [
  [
    "/v1/chat/completions",
    bodies([...Object.keys(chatFields), ...Object.keys(unsupportedInChat)], {
      messages: fc.array(message, { minLength: 1, maxLength: 3 }),
      tools: fc.oneof(fc.constant(null), fc.array(called("note", "parameters"), { maxLength: 2 })),
    }),
  ],
  [
    "/v1/completions",
    bodies([...Object.keys(completionFields), ...Object.keys(unsupportedInCompletions)], {
      prompt: fc.oneof(goodPrompt, fc.array(goodPrompt, { minLength: 1, maxLength: 3 })),
    }),
  ],
  [
    "/tokenize",
    bodies(["prompt", "messages", "content", "with_pieces", "add_special"], { prompt: goodPrompt }),
  ],
  ["/detokenize", bodies(["tokens"], { tokens: goodPrompt })],
];

it.each(endpoints)("any JSON to %s is answered or refused in the known shape", async (path, arbitrary) => {
  const statuses = new Map<number, number>();
  await fc.assert(
    fc.asyncProperty(arbitrary, async (body) => {
      const response = await fetch(api.address + path, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(body) ?? "",
      });
      const text = await response.text();
      statuses.set(response.status, (statuses.get(response.status) ?? 0) + 1);
      if (response.status === 200) {
        if (response.headers.get("content-type")?.startsWith("text/event-stream")) {
          expect(sseData(text).at(-1)).toBe("[DONE]");
          expect(text).not.toContain('"error"');
        } else JSON.parse(text);
        return;
      }
      expect([400, 404]).toContain(response.status);
      const { error } = JSON.parse(text);
      expect(Object.keys(errorKinds)).toContain(error.code);
      expect(typeof error.message).toBe("string");
      expect(error.message.length).toBeLessThan(1_000);
      expect(error.param === null || typeof error.param === "string").toBe(true);
    }),
    { numRuns: runsPerEndpoint },
  );
  // Neither always refused nor always taken, else this has tested one door only.
  expect(statuses.get(200)).toBeGreaterThan(runsPerEndpoint / 25);
  expect(statuses.get(400)).toBeGreaterThan(runsPerEndpoint / 25);
  expect((await get(api, "/livez")).status).toBe(200);
});
