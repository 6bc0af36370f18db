/**
 * A checkpoint's own chat template. It is code that came with the model, so it sees nothing but the values
 * it is given, and is bounded in time and in what it writes.
 */
import { createContext, Script } from "node:vm";
import { Environment, Interpreter, parse, tokenize } from "@huggingface/jinja";
import type { ChatTemplateSource } from "../../checkpoint/chat-template.js";
import { RelayError } from "../../common/errors.js";
import type { OwnTemplate, PromptFormat, ThinkingTags } from "../../models/card.js";
import type { ChatMessage, ChatOptions, PromptPart, Tool } from "./chat-message.js";
import { namePattern } from "./prompt-parts.js";
import { ProtectedText } from "./protected-text.js";
import { callTurns } from "./roles-format.js";
import { strftime } from "./strftime.js";
import { withoutOff } from "./turns-format.js";

/** To parse or render: a body of 4 MiB renders in less than half a second; what takes longer does not end. */
const maxMs = 5_000;
/** A template repeats little: four times what a body may hold. */
const maxRenderedLength = 16 * 1024 * 1024;
/** Numbers that range() gives at once: more than any request has messages. */
const maxRange = 100_000;

/** Tags at which a fault is looked for; published templates have fewer than 200. */
const maxTries = 500;

type Program = ReturnType<typeof parse>;

/** What the template is to be told about its model. */
export interface TemplateModel {
  format: PromptFormat & { ownTemplate: OwnTemplate };
  /** Of all special tokens. */
  names: readonly string[];
  /** Variables from tokenizer_config.json: bos_token, eos_token and so on. */
  variables: Record<string, string>;
}

export class ChatTemplate {
  readonly #source: ChatTemplateSource;
  readonly #program: Program;
  readonly #toolsProgram: Program;
  readonly #model: TemplateModel;
  readonly #names: RegExp | null;
  readonly #now: () => Date;
  /** All of the template's text. */
  readonly #text: string;

  /** @throws RelayError invalid_model naming file and place of what is no template. */
  constructor(source: ChatTemplateSource, model: TemplateModel, now: () => Date = () => new Date()) {
    this.#source = source;
    this.#text = source.text + (source.toolsText ?? "");
    this.#program = parsed(source.text, source.path);
    this.#toolsProgram =
      source.toolsText === null ? this.#program : parsed(source.toolsText, `${source.path} ("tool_use")`);
    this.#model = model;
    this.#names = namePattern(model.names);
    this.#now = now;
  }

  /** The file, for messages. */
  get path(): string {
    return this.#source.path;
  }

  /**
   * All of the prompt, prefix included.
   * @throws RelayError invalid_value when the template refuses the conversation, or exceeds its bounds;
   *   unsupported_parameter for tools or calls that it would leave out.
   */
  parts(messages: readonly ChatMessage[], options: ChatOptions): PromptPart[] {
    const { tools = [] } = options;
    this.#refuseUnknown(messages, tools);
    const given = JSON.stringify([messages, tools, options.templateVariables ?? {}]);
    const texts = new ProtectedText(this.#model.names, given + this.#text);
    const variables = this.#variables(this.#knownTurns(messages), options, texts);
    const program = tools.length > 0 ? this.#toolsProgram : this.#program;
    const rendered = this.#bounded(() => render(program, variables, this.#now));
    const pieces = this.#names === null ? [rendered] : rendered.split(this.#names);
    const parts = pieces.map(
      (piece, index): PromptPart => (index % 2 === 1 ? { token: piece } : { text: texts.restore(piece) }),
    );
    return parts.filter((part) => "token" in part || part.text !== "");
  }

  /** A template that does not ask for tools or calls would leave them out, and the model would not know. */
  #refuseUnknown(messages: readonly ChatMessage[], tools: readonly Tool[]): void {
    const refuse = (param: string) => {
      const problem = `${param}: the model's chat template has no place for them, expected none`;
      throw new RelayError("unsupported_parameter", problem, { param });
    };
    if (tools.length > 0 && !this.#text.includes("tools")) refuse("tools");
    if (this.#model.format.kind === "roles" || this.#text.includes("tool_calls")) return;
    const index = messages.findIndex(({ toolCalls }) => toolCalls && toolCalls.length > 0);
    if (index >= 0) refuse(`messages[${index}].tool_calls`);
  }

  /** Calls and results as the card's format has them, where the template knows no other form. */
  #knownTurns(messages: readonly ChatMessage[]): ChatMessage[] {
    const { format } = this.#model;
    if (format.kind !== "roles") return [...messages];
    const knowsCalls = this.#text.includes("tool_calls");
    const knowsResults = /(["'])tool\1/.test(this.#text);
    return messages.flatMap((message) => {
      const { role, content, toolCalls = [], ...rest } = message;
      if (toolCalls.length === 0 || knowsCalls) {
        const isResult = role === "tool" || role === "function";
        return [isResult && !knowsResults ? { ...message, role: "observation" } : message];
      }
      const turns = callTurns(toolCalls, format);
      const calls = turns.map(({ name, text }): ChatMessage => ({ role, metadata: name, content: text }));
      return content === "" ? calls : [{ role, content, ...rest }, ...calls];
    });
  }

  #variables(
    messages: readonly ChatMessage[],
    { addGenerationPrompt = true, tools = [], enableThinking, templateVariables = {} }: ChatOptions,
    texts: ProtectedText,
  ): Record<string, unknown> {
    const { format } = this.#model;
    const thinking = format.kind === "turns" ? format.thinking : null;
    return {
      ...this.#model.variables,
      ...Object.fromEntries(
        Object.entries(templateVariables).map(([name, value]) => [name, texts.protectAll(value)]),
      ),
      ...(enableThinking === undefined ? {} : { enable_thinking: enableThinking }),
      messages: messages.map((message) =>
        templateMessage(message, format.ownTemplate, enableThinking === false ? thinking : null, texts),
      ),
      tools: tools.length === 0 ? null : tools.map((tool) => protectedTool(tool, texts)),
      documents: null,
      add_generation_prompt: addGenerationPrompt,
    };
  }

  #bounded(run: () => string): string {
    let rendered: string;
    try {
      rendered = timed(run);
    } catch (cause) {
      const what = isLate(cause) ? `takes longer than ${maxMs} ms` : `says: ${messageOf(cause)}`;
      throw this.#refusal(what, cause);
    }
    if (rendered.length <= maxRenderedLength) return rendered;
    throw this.#refusal(`writes ${rendered.length} characters, expected at most ${maxRenderedLength}`);
  }

  #refusal(what: string, cause?: unknown): RelayError {
    return new RelayError("invalid_value", `messages: the model's chat template ${what}`, {
      param: "messages",
      cause,
    });
  }
}

/** One for all templates of a thread: a context takes a megabyte, and nothing in it ever waits. */
let sandbox: ReturnType<typeof newSandbox> | null = null;

function newSandbox() {
  return { context: createContext({ run: null as (() => unknown) | null }), script: new Script("run()") };
}

/** Runs it with a time limit: the watchdog of the script's context ends also what the script calls. */
function timed<T>(run: () => T): T {
  sandbox ??= newSandbox();
  try {
    sandbox.context.run = run;
    return sandbox.script.runInContext(sandbox.context, { timeout: maxMs }) as T;
  } finally {
    sandbox.context.run = null;
  }
}

function isLate(cause: unknown): boolean {
  return (cause as NodeJS.ErrnoException | null)?.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";
}

function messageOf(cause: unknown): string {
  const message = cause instanceof Error ? cause.message : String(cause);
  return message.length > 300 ? `${message.slice(0, 300)}...` : message;
}

function templateMessage(
  message: ChatMessage,
  { roles }: OwnTemplate,
  thinkingOff: ThinkingTags | null,
  texts: ProtectedText,
): Record<string, unknown> {
  const { role, content, metadata, reasoning, toolCalls, toolCallId, name } = message;
  // Who wrote the mark meant the token that the template adds.
  const shown = thinkingOff && role === "user" ? withoutOff(content, thinkingOff.off) : content;
  const text = (value: string | undefined) => (value === undefined ? undefined : texts.protect(value));
  const all = {
    role: roles[role] ?? role,
    content: texts.protect(shown),
    metadata: text(metadata),
    reasoning_content: text(reasoning),
    tool_call_id: text(toolCallId),
    name: text(name),
    tool_calls: toolCalls?.map((call) => ({
      id: texts.protect(call.id),
      type: "function",
      function: { name: texts.protect(call.name), arguments: texts.protectAll(call.arguments) },
    })),
  };
  // An undefined value would be a defined variable to the template.
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}

/** What a template asks for by name, or compares, stays as it is. */
function protectedTool(tool: Tool, texts: ProtectedText): Record<string, unknown> {
  const members = (value: object) =>
    Object.entries(value).map(([key, member]): [string, unknown] => [key, texts.protectAll(member)]);
  const all = { ...Object.fromEntries(members(tool)), type: tool.type };
  return { ...all, function: Object.fromEntries(members(tool.function)) };
}

function render(program: Program, variables: Record<string, unknown>, now: () => Date): string {
  const environment = new Environment();
  for (const [name, value] of [
    ["true", true],
    ["false", false],
    ["none", null],
  ] as const) {
    environment.set(name, value);
    environment.set(name.charAt(0).toUpperCase() + name.slice(1), value);
  }
  environment.set("raise_exception", (message: unknown) => {
    throw new Error(String(message));
  });
  environment.set("range", range);
  environment.set("strftime_now", (format: unknown) => strftime(now(), String(format)));
  for (const [name, value] of Object.entries(variables)) environment.set(name, value);
  const { value } = new Interpreter(environment).run(program);
  return String(value);
}

function range(first: number, second?: number, step = 1): number[] {
  const [begin, end] = second === undefined ? [0, first] : [first, second];
  const count = Math.ceil((end - begin) / step);
  if (!Number.isFinite(count) || count > maxRange) {
    throw new Error(`range(${begin}, ${end}, ${step}), expected at most ${maxRange} numbers`);
  }
  return Array.from({ length: Math.max(0, count) }, (_, index) => begin + index * step);
}

/** As the transformers package sets Jinja up: trim_blocks and lstrip_blocks. */
function parsed(text: string, path: string): Program {
  let fault: string;
  try {
    const result = timed(() => {
      const problem = parseProblem(text);
      return typeof problem === "string" ? { problem, ...placeOf(text, problem) } : problem;
    });
    if (!("problem" in result)) return result;
    fault = `line ${result.line}, column ${result.column} of the chat template: ${result.problem}`;
  } catch (cause) {
    if (!isLate(cause)) throw cause;
    fault = `the chat template takes longer than ${maxMs} ms to parse`;
  }
  throw new RelayError("invalid_model", `${path}: ${fault}`);
}

function parseProblem(text: string): Program | string {
  try {
    return parse(tokenize(text, { trim_blocks: true, lstrip_blocks: true }));
  } catch (cause) {
    return messageOf(cause);
  }
}

/**
 * The library does not say where it stopped: it is the first tag after which the template, cut off there,
 * has the same fault.
 */
function placeOf(text: string, problem: string): { line: number; column: number } {
  let begin = 0;
  let tries = 0;
  for (const { index, 0: end } of text.matchAll(/[%}#]\}/g)) {
    if (++tries > maxTries || parseProblem(text.slice(0, index + end.length)) === problem) break;
    begin = index + end.length;
  }
  const tag = text.slice(begin).search(/\{[{%#]/);
  const before = text.slice(0, tag < 0 ? text.length : begin + tag);
  return { line: before.split("\n").length, column: before.length - before.lastIndexOf("\n") };
}
