/**
 * A thread that reads bodies, encodes and decodes for service.ts; each has its own tokenizer, read at
 * its first task.
 */
import { workerData } from "node:worker_threads";
import { move, transferableSymbol, valueSymbol } from "piscina";
import { RelayError } from "../../common/errors.js";
import { buffersOf, readBody } from "../api/read-body.js";
import { LocalEncoder } from "./encoder.js";
import type { PromptTask, TaskResult, ThreadSetup } from "./task.js";
import { openTokenizer } from "./tokenizer.js";

let opened: Promise<LocalEncoder> | null = null;

/** @returns A TaskResult whose large parts are moved, not copied. */
export default async function run(task: PromptTask): Promise<unknown> {
  try {
    opened ??= open(workerData as ThreadSetup);
    return await answer(await opened, task);
  } catch (error) {
    if (!(error instanceof RelayError)) throw error;
    const { code, message, param, extra } = error;
    return { kind: "error", code, message, param, extra } satisfies TaskResult;
  }
}

async function open({ directory, card }: ThreadSetup): Promise<LocalEncoder> {
  const tokenizer = await openTokenizer(directory, card);
  tokenizer?.selfCheck();
  return new LocalEncoder(tokenizer);
}

async function answer(encoder: LocalEncoder, task: PromptTask): Promise<unknown> {
  switch (task.kind) {
    case "open": {
      const { tokenizer } = encoder;
      const table = tokenizer?.data ?? null;
      return { kind: "opened", table, hasTemplate: tokenizer?.hasTemplate ?? false } satisfies TaskResult;
    }
    case "text": {
      const tokens = await encoder.encodeText(task.text, task.addSpecialTokens);
      return moved({ kind: "tokens", tokens }, [tokens.buffer]);
    }
    case "chat": {
      const tokens = await encoder.encodeChat(task.messages, task.options);
      return moved({ kind: "tokens", tokens }, [tokens.buffer]);
    }
    case "decode":
      return { kind: "text", text: await encoder.decode(task.tokens, task) } satisfies TaskResult;
    case "body": {
      const read = await readBody(task.body, encoder);
      return moved({ kind: "body", read }, buffersOf(read));
    }
  }
}

function moved(result: TaskResult, buffers: ArrayBuffer[]): unknown {
  return move({ [transferableSymbol]: buffers, [valueSymbol]: result });
}
