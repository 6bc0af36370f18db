/**
 * Fields of config.json that a person replaces without touching the directory. Every process that opens the
 * model has to know them, so they travel with the plan and enter the fingerprint.
 */
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";

/** Fields of config.json by name. */
export type Overrides = Readonly<Record<string, unknown>>;

/** What is said about a model beside its directory. */
export interface OpenOptions {
  /** Replace fields of config.json, or add them. */
  overrides?: Overrides;
  /** Directory of a prefix encoder (P-Tuning v2); absent or null: the checkpoint's own, if it has one. */
  prefixEncoder?: string | null;
}

/** As text, far more than a config.json has fields. */
export const maxOverridesBytes = 64 * 1024;

/** config.json as it is to be read. */
export function overridden(
  config: Record<string, unknown>,
  overrides: Overrides = {},
): Record<string, unknown> {
  return { ...config, ...overrides };
}

/** The same text for the same overrides; "" for none. */
export function overridesText(overrides: Overrides = {}): string {
  const names = Object.keys(overrides).sort();
  if (names.length === 0) return "";
  return JSON.stringify(Object.fromEntries(names.map((name) => [name, overrides[name]])));
}

/** One line for every override, for people. A field that the file does not have may be a typing error. */
export function overrideWarnings(
  config: Record<string, unknown>,
  overrides: Overrides,
  directory: string,
): string[] {
  const path = join(directory, "config.json");
  return Object.keys(overrides)
    .sort()
    .map((name) => {
      const used = `${printValue(name)} is ${printValue(overrides[name])} by --set`;
      if (!Object.hasOwn(config, name)) return `${path}: ${used}; the file has no such field`;
      return `${path}: ${used} instead of ${printValue(config[name])}`;
    });
}

/**
 * Reads the text of overridesText, which another process sent.
 * @throws RelayError invalid_configuration
 */
export function parseOverrides(text: string): Overrides {
  if (text === "") return {};
  if (text.length <= maxOverridesBytes) {
    try {
      const value: unknown = JSON.parse(text);
      if (typeof value === "object" && value !== null && !Array.isArray(value)) {
        // What can be read can be nested too deeply to be written again, as keys of stages need it.
        overridesText(value as Overrides);
        return value as Overrides;
      }
    } catch {
      // Said below.
    }
  }
  throw new RelayError(
    "invalid_configuration",
    `plan's config_overrides is ${printValue(text)}: expected a JSON object of at most ${maxOverridesBytes} bytes`,
  );
}
