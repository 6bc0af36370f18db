/** A conversation as the API hands it over: plain data that crosses threads. */

export interface ChatMessage {
  role: string;
  content: string;
  /** Goes onto the line of the role (ChatGLM3, GLM-4: the tool's name); usually empty. */
  metadata?: string;
  /** What the assistant thought before it answered. */
  reasoning?: string;
  toolCalls?: ToolCall[];
  /** Of a result: the call that it answers. */
  toolCallId?: string;
  name?: string;
}

export interface ToolCall {
  id: string;
  name: string;
  arguments: Record<string, unknown>;
  /** The arguments as the client wrote them, JSON. */
  argumentsText: string;
}

/** A function tool as the client wrote it: what is described to the model is this object. */
export interface Tool {
  type: "function";
  function: { name: string; [member: string]: unknown };
  [member: string]: unknown;
}

export interface ChatOptions {
  /** End with what asks for a reply; true. */
  addGenerationPrompt?: boolean;
  tools?: Tool[];
  /** true */
  enableThinking?: boolean;
  /** Further variables of the checkpoint's own template. */
  templateVariables?: Record<string, unknown>;
}

/** Special tokens, and texts that are encoded on their own. */
export type PromptPart = { token: string } | { text: string };
