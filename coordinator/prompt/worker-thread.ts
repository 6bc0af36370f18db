/** A thread that encodes and decodes for service.ts; each has its own tokenizer, read at its first task. */
import { workerData } from "node:worker_threads";
import { toRelayError } from "../../common/errors.js";
import type { PromptTask, TaskResult, ThreadSetup } from "./task.js";
import { openTokenizer, type Tokenizer } from "./tokenizer.js";

let opened: Promise<Tokenizer> | null = null;

export default async function run(task: PromptTask): Promise<TaskResult> {
  try {
    opened ??= open(workerData as ThreadSetup);
    return answer(await opened, task);
  } catch (error) {
    const { code, message, param } = toRelayError(error);
    return { kind: "error", code, message, param };
  }
}

async function open({ directory, card }: ThreadSetup): Promise<Tokenizer> {
  const tokenizer = await openTokenizer(directory, card);
  if (!tokenizer) throw new Error(`${card.tokenizer.file} has gone from ${directory}`);
  tokenizer.selfCheck();
  return tokenizer;
}

function answer(tokenizer: Tokenizer, task: PromptTask): TaskResult {
  switch (task.kind) {
    case "check":
      return { kind: "done" };
    case "text":
      return { kind: "tokens", tokens: Int32Array.from(tokenizer.encodeText(task.text, task)) };
    case "chat":
      return { kind: "tokens", tokens: Int32Array.from(tokenizer.encodeChat(task.messages, task)) };
    case "decode":
      return { kind: "text", text: tokenizer.decode(task.tokens, task) };
  }
}
