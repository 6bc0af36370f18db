import { readFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { describe, expect, it } from "vitest";
import { type ErrorCode, errorKinds, RelayError, toRelayError } from "../../../common/errors.js";
import { packageRoot } from "../../../common/package.js";

describe("the catalogue of errors", () => {
  it("is what docs/errors.md says, in both directions", () => {
    const text = readFileSync(join(packageRoot, "docs/errors.md"), "utf8");
    const row = /^\| `(\w+)` +\| (\d+) +\| (\w+) +\| (\w+) +\| (yes|no) +\|/gm;
    const documented = [...text.matchAll(row)].map(([, code, http, grpc, type, again]) => [
      code,
      { http: Number(http), grpc, type, retryable: again === "yes" },
    ]);
    const actual = Object.entries(errorKinds).map(([code, { http, grpc, type, retryable }]) => [
      code,
      { http, grpc: status[grpc], type, retryable },
    ]);
    expect(Object.fromEntries(documented)).toEqual(Object.fromEntries(actual));
    expect(documented).toHaveLength(actual.length);
    // A row in another form would not have been looked at.
    expect(text.match(/^\| `/gm)).toHaveLength(actual.length);
  });

  it("keeps what is one of ours and wraps what is not, with its cause", () => {
    const ours = new RelayError("queue_full" satisfies ErrorCode, "full", { retryAfterS: 3 });
    expect(toRelayError(ours)).toBe(ours);
    const cause = new TypeError("x is undefined");
    expect(toRelayError(cause)).toMatchObject({ code: "internal", httpStatus: 500, cause });
  });
});
