import { describe, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { LogLines } from "../../support/log-lines.js";

const secret = "correct horse battery staple";

describe("the log", () => {
  it("refuses a level that there is not, and names those that there are", () => {
    expect(() => new LogLines("loud")).toThrow(
      'log level "loud" (environment variable GLM_RELAY_LOG): expected trace, debug, info, warn, error, fatal, silent',
    );
  });

  it("blanks what may be a prompt, an answer or a key, at the top and up to two levels down", () => {
    const lines = new LogLines();
    const fields = { prompt: secret, messages: [{ role: "user", content: secret }], authorization: secret };
    lines.log.info(fields, "top");
    lines.log.info({ request: fields }, "one level down");
    lines.log.info({ job: { data: { prompt: secret }, request: fields } }, "two levels down");
    lines.log.info({ request: { promptTokens: [99, 111, 114], text: secret } }, "tokens");
    expect(lines.all).toHaveLength(4);
    expect(lines.text).not.toContain(secret);
    expect(lines.text).not.toContain("99,111");
    expect(lines.of("top")[0]).toMatchObject({ prompt: "[redacted]", messages: "[redacted]" });
  });

  it("keeps counts and ids", () => {
    const lines = new LogLines();
    lines.log.info({ requestId: "r-1", promptTokens: 12, completionTokens: 3 }, "response");
    expect(lines.all[0]).toMatchObject({ requestId: "r-1", promptTokens: 12, completionTokens: 3 });
  });

  it("writes of an error its name, code, message, stack and causes, and nothing that hangs on it", () => {
    const lines = new LogLines();
    // As ioredis does it: the command with all its arguments.
    const cause = Object.assign(new Error("OOM command not allowed"), {
      code: "ERR",
      command: { name: "set", args: ["ledger:1", secret] },
    });
    lines.log.warn({ err: new RelayError("queue_unavailable", "Redis is away", { cause }) }, "failed");
    expect(lines.text).not.toContain(secret);
    expect(lines.all[0]!["err"]).toMatchObject({
      type: "RelayError",
      code: "queue_unavailable",
      message: "Redis is away",
      cause: { type: "Error", code: "ERR", message: "OOM command not allowed" },
    });
    expect(lines.all[0]!["err"]).toHaveProperty("stack");
  });

  it("writes a chain of causes to its fourth, also when it is a ring", () => {
    const lines = new LogLines();
    const ring = new Error("ring");
    ring.cause = ring;
    lines.log.warn({ err: ring }, "failed");
    expect(lines.text.match(/"message":"ring"/g)).toHaveLength(5);
  });

  it("writes nothing of a thrown object that is no error", () => {
    const lines = new LogLines();
    lines.log.warn({ err: { anything: secret } }, "failed");
    expect(lines.text).not.toContain(secret);
    expect(lines.all[0]!["err"]).toBe("object");
  });
});
