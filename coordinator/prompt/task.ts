/** What crosses between the main thread and the threads that encode and decode. */
import type { ErrorCode } from "../../common/errors.js";
import type { ModelCard } from "../../models/card.js";
import type { ChatMessage } from "./tokenizer.js";

export interface ThreadSetup {
  directory: string;
  card: ModelCard;
}

export type PromptTask =
  | { kind: "check" }
  | { kind: "text"; text: string; addSpecialTokens: boolean }
  | { kind: "chat"; messages: ChatMessage[]; addGenerationPrompt: boolean }
  | { kind: "decode"; tokens: number[]; skipSpecialTokens: boolean };

/** An error crosses as a value: a thrown one would arrive without its code. */
export type TaskResult =
  | { kind: "done" }
  | { kind: "tokens"; tokens: Int32Array }
  | { kind: "text"; text: string }
  | { kind: "error"; code: ErrorCode; message: string; param: string | undefined };
