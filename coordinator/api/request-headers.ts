/**
 * The headers by which a generation request says whose it is, how urgent, and until when its answer is wanted;
 * over gRPC the same names stand in the metadata.
 */
import { RelayError } from "../../common/errors.js";
import type { GenerationRequest } from "../inference.js";
import { defaultTenant, type RequestClass, requestClasses } from "../request-class.js";
import { type JsonSchema, show } from "./fields.js";
import { maxRequestTimeoutMs, maxTenantLength } from "./limits.js";

export type RequestHeaders = Pick<GenerationRequest, "tenant" | "class" | "deadlineMs">;

interface Header<T> {
  summary: string;
  schema: JsonSchema;
  /** @param value As sent, repetitions joined by commas; undefined when it is absent. @throws RelayError */
  read(value: string | undefined, name: string): T;
}

const tenantHeader: Header<string> = {
  summary: "Who asks: tenants of a class take turns by tokens and share no computed prompts.",
  schema: {
    type: "string",
    minLength: 1,
    maxLength: maxTenantLength,
    pattern: "^[A-Za-z0-9._:/@+=-]+$",
    default: defaultTenant,
  },
  read(value = defaultTenant, name) {
    if (value.length <= maxTenantLength && /^[A-Za-z0-9._:/@+=-]+$/.test(value)) return value;
    throw refused(name, value, `1 to ${maxTenantLength} characters of A-Z a-z 0-9 . _ : / @ + = -`);
  },
};

const classHeader: Header<RequestClass> = {
  summary: "Batch requests get what interactive ones leave over.",
  schema: { type: "string", enum: requestClasses, default: "interactive" },
  read(value = "interactive", name) {
    const found = requestClasses.find((known) => known === value);
    if (found === undefined) throw refused(name, value, requestClasses.join(" or "));
    return found;
  },
};

const timeoutHeader: Header<number | undefined> = {
  summary: "Milliseconds after its arrival until which the whole answer is wanted.",
  schema: { type: "integer", minimum: 1, maximum: maxRequestTimeoutMs },
  read(value, name) {
    if (value === undefined) return undefined;
    const ms = /^\d+$/.test(value) ? Number(value) : Number.NaN;
    if (ms >= 1 && ms <= maxRequestTimeoutMs) return ms;
    throw refused(name, value, `an integer from 1 to ${maxRequestTimeoutMs}`);
  },
};

export const requestHeaders = {
  "x-glm-tenant": tenantHeader,
  "x-glm-class": classHeader,
  "x-request-timeout-ms": timeoutHeader,
} satisfies Record<string, Header<unknown>>;

/**
 * @param valuesOf All values of a header or metadata key, in order.
 * @param arrivedMs When the request arrived, on the monotonic clock.
 * @throws RelayError invalid_value naming the header
 */
export function readRequestHeaders(
  valuesOf: (name: string) => readonly string[],
  arrivedMs: number,
): RequestHeaders {
  const read = <T>(name: string, header: Header<T>): T => {
    const values = valuesOf(name);
    return header.read(values.length === 0 ? undefined : values.join(", "), name);
  };
  const timeoutMs = read("x-request-timeout-ms", timeoutHeader);
  return {
    tenant: read("x-glm-tenant", tenantHeader),
    class: read("x-glm-class", classHeader),
    ...(timeoutMs === undefined ? {} : { deadlineMs: wallClockMs(arrivedMs) + timeoutMs }),
  };
}

/** The time of day at a moment of the monotonic clock. */
function wallClockMs(monotonicMs: number): number {
  return Math.round(Date.now() - (performance.now() - monotonicMs));
}

function refused(name: string, value: string, expected: string): RelayError {
  return new RelayError("invalid_value", `${name}: ${show(value)} is not valid, expected ${expected}`, {
    param: name,
  });
}
