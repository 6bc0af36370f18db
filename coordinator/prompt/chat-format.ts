/** Chat messages in a card's prompt format, as special tokens and texts that are encoded on their own. */
import { RelayError } from "../../common/errors.js";
import type { PromptFormat, RolesPrompt, RoundsPrompt } from "../../models/card.js";

export interface ChatMessage {
  role: string;
  content: string;
  /** Goes onto the line of the role (ChatGLM3, GLM-4: the tool's name); usually empty. */
  metadata?: string;
}

export type PromptPart = { token: string } | { text: string };

/**
 * What stands between the format's prefix and its suffix.
 * @throws RelayError invalid_value for no messages, an unknown role or one out of place.
 */
export function chatParts(
  messages: ChatMessage[],
  format: PromptFormat,
  addGenerationPrompt: boolean,
): PromptPart[] {
  if (messages.length === 0) refuse("messages is empty, expected at least one message", "messages");
  for (const [index, { role }] of messages.entries()) {
    if (Object.hasOwn(format.roles, role)) continue;
    const expected = Object.keys(format.roles).join(", ");
    refuse(`messages[${index}].role is "${role}", expected one of ${expected}`, `messages[${index}].role`);
  }
  if (format.kind === "rounds") return [{ text: roundsText(messages, format, addGenerationPrompt) }];
  return rolesParts(messages, format, addGenerationPrompt);
}

/** Per message the role's token, the metadata line and the content; then the token that asks for a reply. */
function rolesParts(
  messages: ChatMessage[],
  format: RolesPrompt,
  addGenerationPrompt: boolean,
): PromptPart[] {
  const parts: PromptPart[] = [];
  for (const [index, { role, content, metadata }] of messages.entries()) {
    if (index > 0 && format.firstOnlyRoles.includes(role)) refuseLateRole(role, index);
    parts.push({ token: format.roles[role]! });
    if (format.metadataLine) parts.push({ text: `${metadata ?? ""}\n` });
    parts.push({ text: content });
  }
  if (addGenerationPrompt) parts.push({ token: format.generation });
  return parts;
}

/**
 * The format knows questions and answers only, in turns. A system message goes, as in the authors' own
 * server, directly before the last question.
 */
function roundsText(messages: ChatMessage[], format: RoundsPrompt, addGenerationPrompt: boolean): string {
  const withSystem = format.roles[messages[0]!.role] === "system";
  const turns = messages.slice(withSystem ? 1 : 0);
  const lastQuestion = turns.findLastIndex(({ role }) => format.roles[role] === "user");
  const texts: string[] = [];
  for (const [turn, { role, content, metadata }] of turns.entries()) {
    const index = turn + (withSystem ? 1 : 0);
    const speaker = format.roles[role]!;
    if (speaker === "system") refuseLateRole(role, index);
    const expected = turn % 2 === 0 ? "user" : "assistant";
    if (speaker !== expected) {
      const param = `messages[${index}].role`;
      refuse(`${param} is "${role}", expected "${expected}": user and assistant take turns`, param);
    }
    if (metadata) {
      const param = `messages[${index}].metadata`;
      refuse(`${param} has no place in this model's prompt format, expected none`, param);
    }
    if (speaker === "assistant") {
      texts.push(format.beforeAnswer, content);
      continue;
    }
    if (turn > 0) texts.push(format.afterAnswer);
    const round = format.firstRound + turn / 2;
    texts.push(format.beforeQuestion.replace("{n}", String(round)));
    if (withSystem && turn === lastQuestion) texts.push(messages[0]!.content);
    texts.push(content);
  }
  if (turns.length % 2 === 0 && (addGenerationPrompt || turns.length === 0)) {
    const index = messages.length - 1;
    const param = `messages[${index}].role`;
    refuse(`${param} is "${messages[index]!.role}", expected the last message to be of the user`, param);
  }
  if (format.bareFirstQuestion && turns.length === 1) {
    return (withSystem ? messages[0]!.content : "") + turns[0]!.content;
  }
  if (addGenerationPrompt) texts.push(format.beforeAnswer);
  return texts.join("");
}

function refuseLateRole(role: string, index: number): never {
  const param = `messages[${index}].role`;
  return refuse(`${param} is "${role}", which is only allowed as the first message`, param);
}

function refuse(problem: string, param: string): never {
  throw new RelayError("invalid_value", problem, { param });
}
