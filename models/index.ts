/** Finds the card of a model directory from what its small files say. */
import { join } from "node:path";
import { RelayError } from "../common/errors.js";
import type { ConfigRule, ModelCard } from "./card.js";
import { chatglm6b } from "./chatglm-6b.js";
import { chatglm2 } from "./chatglm2.js";
import { chatglm3 } from "./chatglm3.js";
import { glm10b, glm10bChinese } from "./glm-10b.js";
import { glm130b } from "./glm-130b.js";
import { glm, glm4 } from "./glm4.js";
import { glm4_9b } from "./glm4-9b.js";
import { glm45 } from "./glm45.js";
import { printValue } from "./print.js";

const cards: readonly ModelCard[] = [
  chatglm3,
  chatglm2,
  chatglm6b,
  glm4_9b,
  glm,
  glm4,
  glm45,
  glm130b,
  glm10b,
  glm10bChinese,
];

export interface DirectoryFacts {
  directory: string;
  /** Parsed config.json. */
  config: Record<string, unknown>;
  /** Parsed tokenizer_config.json; null without one. */
  tokenizerConfig: Record<string, unknown> | null;
  hasFile(name: string): boolean;
}

/** Something in the directory that says of which family it is. */
interface Claim {
  card: ModelCard;
  /** For messages. */
  said: string;
}

/**
 * The card of the directory's family, whose rules config.json satisfies. Families that share the name
 * of their code are told apart by config.json's fields, then by the names and the tokenizer's marks
 * that stand in the directory; what is still open, or contradicts itself, is refused.
 * @throws RelayError invalid_model naming the file, the field, its value and what is supported.
 */
export function cardFor(facts: DirectoryFacts): ModelCard {
  const card = chooseCard(facts);
  const path = join(facts.directory, "config.json");
  for (const rule of [...card.match.fields, ...card.rules]) {
    if (satisfies(facts.config, rule)) continue;
    throw new RelayError("invalid_model", `${path}: ${violation(facts.config, rule, card)}`);
  }
  return card;
}

function chooseCard(facts: DirectoryFacts): ModelCard {
  const { config, directory } = facts;
  const alike = cards.filter((card) => matches(card, config));
  if (alike.length === 0) throw unknownArchitecture(config, directory);
  const fitting = alike.filter(({ match }) => match.fields.every((field) => satisfies(config, field)));
  const claims = claimsOf(facts, alike, fitting);
  const [claim] = claims;
  if (claim) {
    const other = claims.find(({ card }) => card !== claim.card);
    if (!other) return claim.card;
    throw new RelayError(
      "invalid_model",
      `${directory}: ${claim.said}, a sign of ${claim.card.title}, but ${other.said}, a sign of ` +
        `${other.card.title}; expected signs of one of them`,
    );
  }
  const [first = alike[0]!, ...others] = fitting;
  if (others.length === 0 || interchangeable(facts, fitting)) return first;
  const titles = fitting.map(({ title }) => title).join(" or ");
  throw new RelayError(
    "invalid_model",
    `${join(directory, "config.json")}: the model could be ${titles}, whose prompts differ; expected a ` +
      `"_name_or_path" that tells, such as "${fitting.map(({ family }) => family).join('" or "')}"`,
  );
}

/** Without a tokenizer there is no prompt format, and without a ratio nothing else differs. */
function interchangeable({ config, hasFile }: DirectoryFacts, candidates: ModelCard[]): boolean {
  return candidates.every(
    ({ tokenizer, rope: { ratioField } }) =>
      !hasFile(tokenizer.file) && (ratioField === undefined || (config[ratioField] ?? 1) === 1),
  );
}

/**
 * Names count for every family of the architecture; among those that fit also a tokenizer's mark, a file that
 * only one family has, and a published size of the vocabulary that is one family's.
 */
function claimsOf(facts: DirectoryFacts, alike: ModelCard[], fitting: ModelCard[]): Claim[] {
  const { config, tokenizerConfig } = facts;
  const names = [
    ["config.json", "_name_or_path", config._name_or_path],
    ["tokenizer_config.json", "name_or_path", tokenizerConfig?.name_or_path],
  ] as const;
  const claims = names.flatMap(([file, field, value]): Claim[] => {
    const name = typeof value === "string" ? lastPart(value) : "";
    const said = `"${field}" of ${file} is ${printValue(value)}`;
    return alike.filter(({ match }) => match.names.test(name)).map((card) => ({ card, said }));
  });
  const text = jsonText(tokenizerConfig);
  for (const card of fitting) {
    const mark = card.match.tokenizerMark;
    if (mark === undefined || !text.includes(mark)) continue;
    claims.push({ card, said: `tokenizer_config.json holds ${printValue(mark)}` });
  }
  return [...claims, ...ownClaims(facts, fitting)];
}

function ownClaims({ config, hasFile }: DirectoryFacts, fitting: ModelCard[]): Claim[] {
  const only = (holds: (card: ModelCard) => boolean) => {
    const found = fitting.filter(holds);
    return found.length === 1 && fitting.length > 1 ? found : [];
  };
  const rowsOf = (card: ModelCard) => config[card.config.vocabSize];
  const withFile = only(({ tokenizer }) => hasFile(tokenizer.file));
  const withSize = only((card) => card.vocabularies?.some(({ rows }) => rows === rowsOf(card)) ?? false);
  return [
    ...withFile.map((card) => ({ card, said: `${card.tokenizer.file} is there` })),
    ...withSize.map((card) => ({
      card,
      said: `"${card.config.vocabSize}" of config.json is ${printValue(rowsOf(card))}`,
    })),
  ];
}

function jsonText(value: unknown): string {
  try {
    return JSON.stringify(value);
  } catch {
    // Nested deeper than the stack: only a hostile file gets here.
    return "";
  }
}

/** "chatglm2-6b" of "THUDM/chatglm2-6b" and of "/models/chatglm3/chatglm2-6b/". */
function lastPart(name: string): string {
  return name.split(/[\\/]+/).findLast((part) => part !== "") ?? "";
}

function matches(card: ModelCard, config: Record<string, unknown>): boolean {
  const architectures = config.architectures;
  if (architectures === undefined) return config.model_type === card.match.modelType;
  return (
    Array.isArray(architectures) && architectures.some((name) => card.match.architectures.includes(name))
  );
}

function satisfies(config: Record<string, unknown>, { field, allowed, refused, whenAbsent }: ConfigRule) {
  const value = config[field] ?? whenAbsent;
  return (allowed?.includes(value) ?? true) && !refused?.includes(value);
}

function violation(config: Record<string, unknown>, rule: ConfigRule, card: ModelCard): string {
  const { field, allowed, refused = [], whenAbsent, meaning } = rule;
  const written =
    config[field] === undefined ? `absent (means ${printValue(whenAbsent)})` : printValue(config[field]);
  const supported = allowed
    ? allowed.map((value) => printValue(value)).join(" or ")
    : `anything but ${refused.map((value) => printValue(value)).join(" or ")}`;
  return `"${field}" is ${written}, supported for ${card.title}: ${supported} (${meaning})`;
}

function unknownArchitecture(config: Record<string, unknown>, directory: string): RelayError {
  const field = config.architectures === undefined ? "model_type" : "architectures";
  const supported = new Set(
    cards.flatMap(({ match }) => (field === "model_type" ? [`"${match.modelType}"`] : match.architectures)),
  );
  const titles = cards.map(({ title }) => title).join(", ");
  return new RelayError(
    "invalid_model",
    `${join(directory, "config.json")}: "${field}" is ${printValue(config[field])}, supported: ` +
      `${[...supported].join(", ")} (${titles})`,
  );
}
