/** Finds the card of a model from its config.json. */
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ModelCard } from "./card.js";
import { chatglm3 } from "./chatglm3.js";
import { glm, glm4 } from "./glm4.js";
import { printValue } from "./print.js";

const cards: readonly ModelCard[] = [chatglm3, glm, glm4];

/**
 * The card whose family config.json names and whose rules it satisfies.
 * @param config    Parsed config.json.
 * @param directory Only for messages.
 * @throws RelayError invalid_model naming the file, the field, its value and what is supported.
 */
export function cardFor(config: Record<string, unknown>, directory: string): ModelCard {
  const file = join(directory, "config.json");
  const card = cards.find((candidate) => matches(candidate, config));
  if (!card) {
    const field = config.architectures === undefined ? "model_type" : "architectures";
    const supported = cards.map((known) =>
      field === "model_type" ? `"${known.match.modelType}"` : known.match.architectures.join(", "),
    );
    throw new RelayError(
      "invalid_model",
      `${file}: "${field}" is ${printValue(config[field])}, supported: ${supported.join(", ")} (${cards.map((known) => known.title).join(", ")})`,
    );
  }
  for (const rule of card.rules) {
    const value = config[rule.field] ?? rule.whenAbsent;
    const refused =
      (rule.allowed !== undefined && !rule.allowed.includes(value)) ||
      (rule.refused !== undefined && typeof value === "string" && rule.refused.test(value));
    if (!refused) continue;
    const written =
      config[rule.field] === undefined ? `absent (means ${printValue(value)})` : printValue(value);
    const supported =
      rule.allowed === undefined
        ? card.title
        : rule.allowed.map((allowed) => printValue(allowed)).join(" or ");
    throw new RelayError(
      "invalid_model",
      `${file}: "${rule.field}" is ${written}, supported for ${card.title}: ${supported} (${rule.meaning})`,
    );
  }
  return card;
}

function matches(card: ModelCard, config: Record<string, unknown>): boolean {
  const architectures = config.architectures;
  if (architectures === undefined) return config.model_type === card.match.modelType;
  return (
    Array.isArray(architectures) && architectures.some((name) => card.match.architectures.includes(name))
  );
}
