/** Chat messages in a card's prompt format, as special tokens and texts that are encoded on their own. */
import { RelayError } from "../../common/errors.js";
import type { PromptFormat, RoundsPrompt } from "../../models/card.js";
import type { ChatMessage, ChatOptions, PromptPart } from "./chat-message.js";
import { refuseLateRole, rolesParts } from "./roles-format.js";
import { turnsParts } from "./turns-format.js";

/**
 * What stands between the format's prefix and its suffix.
 * @param names Finds special tokens in the card's own texts.
 * @throws RelayError invalid_value for no messages, an unknown role or one out of place;
 *   unsupported_parameter for what the format has no place for.
 */
export function chatParts(
  messages: ChatMessage[],
  format: PromptFormat,
  options: ChatOptions,
  names: RegExp | null,
): PromptPart[] {
  checkMessages(messages, format, options);
  if (format.kind === "turns") return turnsParts(messages, format, options, names);
  if (format.kind === "roles") return rolesParts(messages, format, options);
  return [{ text: roundsText(messages, format, options.addGenerationPrompt ?? true) }];
}

/**
 * Clients that know nothing of thoughts send them back as part of the content: they are taken apart here,
 * since a tag in a client's text is no token.
 */
export function withThoughtsApart(
  messages: ChatMessage[],
  format: PromptFormat,
  hasTemplate: boolean,
): ChatMessage[] {
  if (format.kind === "rounds") return messages;
  const tags = format.kind === "turns" ? format.thinking : hasTemplate && format.ownTemplate?.thinking;
  if (!tags) return messages;
  const { begin, end } = tags;
  return messages.map((message) => {
    const text = message.content.trimStart();
    const at = text.indexOf(end);
    const isThought = message.role === "assistant" && text.startsWith(begin) && at >= 0;
    if (!isThought) return message;
    const reasoning = message.reasoning ?? text.slice(begin.length, at).trim();
    return { ...message, reasoning, content: text.slice(at + end.length).trimStart() };
  });
}

/**
 * No format has ids: results belong to calls by their order. A client that ran calls at the same time may
 * send their results as they came; those that name the calls in front of them are put in order.
 */
export function inOrderOfCalls(messages: ChatMessage[]): ChatMessage[] {
  const ordered: ChatMessage[] = [];
  for (let at = 0; at < messages.length; ) {
    const { toolCalls = [] } = messages[at]!;
    ordered.push(messages[at++]!);
    const ids = toolCalls.map(({ id }) => id);
    const results: ChatMessage[] = [];
    while (at < messages.length && ids.includes(messages[at]!.toolCallId ?? ""))
      results.push(messages[at++]!);
    ordered.push(...results.sort((a, b) => ids.indexOf(a.toolCallId!) - ids.indexOf(b.toolCallId!)));
  }
  return ordered;
}

/** What holds for the checkpoint's own template as well. */
export function checkMessages(messages: ChatMessage[], format: PromptFormat, options: ChatOptions): void {
  if (messages.length === 0) refuse("messages is empty, expected at least one message", "messages");
  for (const [index, { role, toolCalls }] of messages.entries()) {
    if (!Object.hasOwn(format.roles, role)) {
      const expected = Object.keys(format.roles).join(", ");
      refuse(`messages[${index}].role is "${role}", expected one of ${expected}`, `messages[${index}].role`);
    }
    if (format.kind === "rounds" && toolCalls && toolCalls.length > 0) {
      refuseTools(`messages[${index}].tool_calls`);
    }
  }
  if (format.kind === "rounds" && options.tools && options.tools.length > 0) refuseTools("tools");
}

function refuseTools(param: string): never {
  const problem = `${param}: this model's prompt format has no place for tools, expected none`;
  throw new RelayError("unsupported_parameter", problem, { param });
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

function refuse(problem: string, param: string): never {
  throw new RelayError("invalid_value", problem, { param });
}
