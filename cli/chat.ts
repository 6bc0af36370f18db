/** `glm-relay chat`: one question from the command line, or a conversation. */
import { createInterface } from "node:readline";
import type { Command } from "commander";
import { type ChatMessage, streamChat } from "./api.js";
import { CommandError, exitStatus, formatFailure } from "./errors.js";
import { httpUrl } from "./options.js";
import { addApiKeyOption, clientKey } from "./secrets.js";
import { defaultUrl } from "./status.js";

/** Older turns are forgotten beyond this; the model's context usually ends first. */
const historyMessagesMax = 512;

export function addChatCommand(program: Command): void {
  const command = program
    .command("chat")
    .description("Asks the model. Without a message it holds a conversation until Ctrl-D.")
    .argument("[message]", "one message; its answer is printed and the command ends")
    .option("--url <url>", "address of the coordinator", httpUrl, defaultUrl)
    .option("--system <text>", "instruction in front of the conversation");
  addApiKeyOption(command).action(run);
}

interface Flags {
  url: string;
  system?: string;
  apiKeyFile?: string;
}

async function run(message: string | undefined, flags: Flags): Promise<void> {
  const conversation = new Conversation(flags.url, flags.system, clientKey(flags));
  if (message === undefined) return converse(conversation);
  const stop = new AbortController();
  process.once("SIGINT", () => stop.abort());
  const outcome = await conversation.ask(message, stop.signal);
  if (outcome === "stopped") process.exitCode = exitStatus.failed;
}

/** The history of one chat, and how a question becomes an answer on the terminal. */
class Conversation {
  private turns: ChatMessage[] = [];
  private readonly system: ChatMessage[];

  constructor(
    private readonly url: string,
    system: string | undefined,
    private readonly key: string | null,
  ) {
    this.system = system === undefined ? [] : [{ role: "system", content: system }];
  }

  /** Prints the answer while it arrives. What was said before a stop stays in the history. */
  async ask(question: string, signal: AbortSignal): Promise<"answered" | "stopped"> {
    const turn: ChatMessage = { role: "user", content: question };
    let text = "";
    const print = (piece: string) => {
      text += piece;
      process.stdout.write(piece);
    };
    for (;;) {
      try {
        const messages = [...this.system, ...this.turns, turn];
        await streamChat(this.url, { messages }, print, signal, this.key);
        this.remember(turn, text);
        return "answered";
      } catch (error) {
        if (signal.aborted) {
          if (text !== "") this.remember(turn, text);
          return "stopped";
        }
        const tooLong = error instanceof CommandError && error.code === "context_length_exceeded";
        if (!tooLong || this.turns.length === 0) throw error;
        // The conversation has outgrown the context: forget its oldest question and answer.
        this.turns.splice(0, 2);
      } finally {
        if (text !== "") process.stdout.write("\n");
      }
    }
  }

  private remember(turn: ChatMessage, answer: string): void {
    this.turns.push(turn, { role: "assistant", content: answer });
    if (this.turns.length > historyMessagesMax) this.turns.splice(0, 2);
  }
}

/**
 * Reads lines and answers them in turn. Ctrl-C stops the answer that is being written; a second one,
 * or one at the prompt, leaves. Lines from a pipe work as well, without a prompt.
 */
async function converse(conversation: Conversation): Promise<void> {
  const terminal = process.stdin.isTTY === true;
  const lines = createInterface({ input: process.stdin, ...(terminal ? { output: process.stdout } : {}) });
  lines.setPrompt(terminal ? "> " : "");
  let answer: AbortController | null = null;
  const interrupt = () => {
    if (answer === null || answer.signal.aborted) lines.close();
    else answer.abort();
  };
  let open = true;
  lines.once("close", () => {
    open = false;
  });
  lines.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);
  lines.prompt();
  for await (const line of lines) {
    if (line.trim() !== "") {
      answer = new AbortController();
      try {
        await conversation.ask(line, answer.signal);
      } catch (error) {
        // In a conversation a failed question is not the end; from a pipe nobody could react.
        if (!terminal) throw error;
        process.stderr.write(`${formatFailure(error)}\n`);
      }
      answer = null;
    }
    if (open) lines.prompt();
  }
  process.off("SIGINT", interrupt);
  if (terminal) process.stdout.write("\n");
}
