/**
 * Fields of request bodies: each knows how to read its value, what to say when it cannot, and its JSON
 * schema for /openapi.json. Nothing is coerced: "1" is not a number and 1 is not true. Written by hand
 * and not with a schema library so that every message names field, value and expectation.
 */
import { RelayError } from "../../common/errors.js";
import { maxShownCharacters } from "./limits.js";

export type JsonSchema = Record<string, unknown>;
export type Body = Record<string, unknown>;

export interface Field<T> {
  readonly schema: JsonSchema;
  /**
   * @param value What the client sent; undefined when the field is absent.
   * @param path  The field as the client would write it, e.g. `messages[2].content`.
   * @throws RelayError invalid_value
   */
  read(value: unknown, path: string): T;
}

export type Fields = Record<string, Field<unknown>>;
export type Values<F extends Fields> = { [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export function readFields<F extends Fields>(fields: F, body: Body): Values<F> {
  const values: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(fields)) {
    values[name] = field.read(Object.hasOwn(body, name) ? body[name] : undefined, name);
  }
  return values as Values<F>;
}

/** The body of a POST; a missing one or one that is no object is refused. */
export function asObject(value: unknown, path: string): Body {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw invalid(path, value, "a JSON object");
  }
  return value as Body;
}

export function invalid(path: string, value: unknown, expected: string): RelayError {
  return new RelayError("invalid_value", `${path}: ${fault(value)}, expected ${expected}`, { param: path });
}

/** Says what a value is without walking into it: it may be large, deep, or both. */
function fault(value: unknown): string {
  if (value === undefined) return "missing";
  if (value === null) return "null is not a value";
  if (typeof value === "number") {
    return Number.isFinite(value) ? `${value} is out of range` : `${value} is not a finite number`;
  }
  if (typeof value === "string") return `${show(value)} is a string`;
  if (Array.isArray(value)) return `a list of ${value.length}`;
  return typeof value === "object" ? "an object" : `${value} is a ${typeof value}`;
}

/** A client's value, short enough for a message. */
export function show(value: unknown): string {
  if (Array.isArray(value)) return "[...]";
  if (typeof value === "object" && value !== null) return "{...}";
  if (typeof value !== "string") return String(value);
  if (value.length <= maxShownCharacters) return JSON.stringify(value);
  return `${JSON.stringify(value.slice(0, maxShownCharacters))}...`;
}

/**
 * A finite number. Null is refused, though OpenAI's API takes it as absent: it is how JSON.stringify and
 * others write NaN, and a default in its place would be an answer to a question nobody asked.
 */
export function numberField(range: {
  min: number;
  max: number;
  /** The range begins just above min. */
  aboveMin?: boolean;
}): Field<number | undefined> {
  const expected = range.aboveMin
    ? `a number above ${range.min}, at most ${range.max}`
    : `a number from ${range.min} to ${range.max}`;
  return {
    schema: {
      type: "number",
      [range.aboveMin ? "exclusiveMinimum" : "minimum"]: range.min,
      maximum: range.max,
    },
    read(value, path) {
      if (value === undefined) return undefined;
      const inRange =
        typeof value === "number" &&
        (range.aboveMin ? value > range.min : value >= range.min) &&
        value <= range.max;
      if (!inRange) throw invalid(path, value, expected);
      return value;
    },
  };
}

export function integerField(range: { min: number; max?: number }): Field<number | undefined> {
  const max = range.max ?? Number.MAX_SAFE_INTEGER;
  const expected =
    range.max === undefined ? `an integer from ${range.min}` : `an integer from ${range.min} to ${range.max}`;
  return {
    schema: {
      type: "integer",
      minimum: range.min,
      ...(range.max === undefined ? {} : { maximum: range.max }),
    },
    read(value, path) {
      if (value === undefined || value === null) return undefined;
      if (typeof value === "number" && Number.isFinite(value) && !Number.isInteger(value)) {
        throw new RelayError("invalid_value", `${path}: ${value} is not an integer, expected ${expected}`, {
          param: path,
        });
      }
      if (typeof value !== "number" || !(value >= range.min && value <= max)) {
        throw invalid(path, value, expected);
      }
      return value;
    },
  };
}

export function booleanField(fallback: boolean): Field<boolean> {
  return {
    schema: { type: "boolean", default: fallback },
    read(value, path) {
      if (value === undefined || value === null) return fallback;
      if (typeof value !== "boolean") throw invalid(path, value, "true or false");
      return value;
    },
  };
}

export const textField: Field<string | undefined> = {
  schema: { type: "string" },
  read(value, path) {
    return value === undefined || value === null ? undefined : readText(value, path);
  },
};

/** A string that is Unicode: half a surrogate pair has no bytes in UTF-8, so no tokens. */
export function readText(value: unknown, path: string): string {
  if (typeof value !== "string") throw invalid(path, value, "a string");
  if (/\p{Surrogate}/u.test(value)) {
    throw new RelayError("invalid_value", `${path}: holds half a surrogate pair, expected Unicode text`, {
      param: path,
    });
  }
  return value;
}

/** A list of token ids, each checked to be one that the model knows. */
export function readTokenIds(
  value: readonly unknown[],
  path: string,
  tokenCount: number,
): Int32Array<ArrayBuffer> {
  const tokens = new Int32Array(value.length);
  for (let i = 0; i < value.length; i++) {
    const token = value[i];
    if (typeof token !== "number" || !Number.isInteger(token) || token < 0 || token >= tokenCount) {
      throw new RelayError(
        "invalid_value",
        `${path}[${i}]: ${show(token)} is not a token id, expected an integer from 0 to ${tokenCount - 1}`,
        { param: path },
      );
    }
    tokens[i] = token;
  }
  return tokens;
}
