/** Fields nobody knows: ignored, since SDK users send them, unless the client asks for strictness. */
import { RelayError } from "../../common/errors.js";
import { type Body, show } from "./fields.js";
import { maxLoggedFields, maxShownCharacters } from "./limits.js";

/**
 * @returns The names of the first ones, for the log.
 * @throws RelayError invalid_value with `strict`
 */
export function unknownFields(body: Body, known: ReadonlySet<string>, strict: boolean): string[] {
  const unknown = Object.keys(body).filter((name) => !known.has(name));
  const first = unknown[0];
  if (strict && first !== undefined) {
    throw new RelayError(
      "invalid_value",
      `${show(first)} is not a field of this endpoint (X-GLM-Strict is 1)`,
      { param: first.slice(0, maxShownCharacters) },
    );
  }
  return unknown.slice(0, maxLoggedFields).map(show);
}
