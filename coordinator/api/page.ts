/** Pages of a list, as OpenAI has them: asked for in the query, told which is its last and whether there are more. */
import { RelayError } from "../../common/errors.js";
import { show } from "./fields.js";
import { maxIdLength } from "./limits.js";

export function pageObject<T extends { id: string }>({
  data,
  hasMore,
}: {
  data: T[];
  hasMore: boolean;
}): object {
  return {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: hasMore,
  };
}

/** @throws RelayError invalid_value, as the next ones, naming the parameter */
export function readAfter(value: unknown, expected: string): string | null {
  if (value === undefined || value === "") return null;
  if (typeof value === "string" && value.length <= maxIdLength) return value;
  throw refused("after", value, expected);
}

export function readLimit(value: unknown, fallback: number, max: number): number {
  if (value === undefined) return fallback;
  const limit = typeof value === "string" && /^\d{1,9}$/.test(value) ? Number(value) : 0;
  if (limit >= 1 && limit <= max) return limit;
  throw refused("limit", value, `an integer from 1 to ${max}`);
}

/** Null when it is absent. */
export function readOneOf<T extends string>(param: string, value: unknown, known: readonly T[]): T | null {
  if (value === undefined) return null;
  const found = known.find((name) => name === value);
  if (found !== undefined) return found;
  throw refused(param, value, known.join(" or "));
}

function refused(param: string, value: unknown, expected: string): RelayError {
  return new RelayError("invalid_value", `${param}: ${show(value)} is not valid, expected ${expected}`, {
    param,
  });
}
