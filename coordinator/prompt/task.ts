/** What crosses between the main thread and the threads that read bodies, encode and decode. */
import type { ErrorCode } from "../../common/errors.js";
import type { ModelCard } from "../../models/card.js";
import type { BodyTask, Read } from "../api/read-body.js";
import type { TokenIds } from "../inference.js";
import type { ChatMessage, ChatOptions } from "./chat-message.js";
import type { TokenTableData } from "./token-table.js";

export interface ThreadSetup {
  directory: string;
  card: ModelCard;
}

export type PromptTask =
  | { kind: "open" }
  | { kind: "text"; text: string; addSpecialTokens: boolean }
  | { kind: "chat"; messages: ChatMessage[]; options: ChatOptions }
  | { kind: "decode"; tokens: TokenIds; skipSpecialTokens: boolean }
  | { kind: "body"; body: BodyTask };

/** An error crosses as a value: a thrown one would arrive without its code. */
export type TaskResult =
  /** null: the directory has no tokenizer. */
  | { kind: "opened"; table: TokenTableData | null; hasTemplate: boolean }
  | { kind: "tokens"; tokens: Int32Array }
  | { kind: "text"; text: string }
  | { kind: "body"; read: Read }
  | {
      kind: "error";
      code: ErrorCode;
      message: string;
      param: string | undefined;
      extra: Record<string, number | string>;
    };
