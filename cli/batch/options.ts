/** The options of `glm-relay batch`, and how a command is written that has them. */
import { type Command, InvalidArgumentError } from "commander";
import { httpUrl, integer } from "../options.js";
import { addApiKeyOption, clientKey } from "../secrets.js";
import { defaultUrl } from "../status.js";
import { shellWord } from "../text.js";
import { BatchClient } from "./client.js";

const priorityMax = 100;
const defaultWindow = "24h";

export interface CommonFlags {
  url: string;
  json?: boolean;
  apiKeyFile?: string;
}

export interface SubmitFlags extends CommonFlags {
  endpoint?: string;
  window: string;
  metadata?: Record<string, string>;
  priority?: number;
  tokenBudget?: number;
  webhook?: string;
}

export const inputHelp = 'file of lines {"custom_id", "method": "POST", "url", "body"}, gzip or not';

export function addCommonOptions(command: Command): Command {
  command
    .option("--url <url>", "address of the coordinator", httpUrl, defaultUrl)
    .option("--json", "print one JSON object on standard output");
  return addApiKeyOption(command);
}

/** What a command of these flags talks to. */
export function clientOf(flags: CommonFlags): BatchClient {
  return new BatchClient(flags.url, clientKey(flags));
}

export function addSubmitOptions(command: Command): Command {
  return command
    .option("--endpoint <path>", "what every line asks (default: the url of the first line)")
    .option(
      "--window <time>",
      "time from now after which no more lines are answered, 1s to 30d",
      defaultWindow,
    )
    .option("--metadata <key=value>", "pair that stays with the batch; can be repeated", addPair)
    .option("--priority <n>", "batches of a lower number go first (default: 0)", readPriority)
    .option(
      "--token-budget <n>",
      "begins no line once the batch has used so many tokens",
      integer(1, 1e15 - 1),
    )
    .option(
      "--webhook <url>",
      "where the batch's end is told (see the coordinator's --webhook-hosts)",
      webUrl,
    );
}

function addPair(text: string, pairs: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError("Expected KEY=VALUE.");
  return { ...pairs, [text.slice(0, at)]: text.slice(at + 1) };
}

function readPriority(text: string): number {
  const value = /^[+-]?\d{1,3}$/.test(text) ? Number(text) : Number.NaN;
  if (Math.abs(value) <= priorityMax) return value;
  throw new InvalidArgumentError(`Expected a whole number from -${priorityMax} to ${priorityMax}.`);
}

/** As it was written: a receiver's query is its own business. */
function webUrl(text: string): string {
  httpUrl(text);
  return text;
}

/** As a shell takes it: the same command once more, or another one at the same coordinator. */
export function commandLine(name: string, args: string[], flags: CommonFlags & Partial<SubmitFlags>): string {
  const { url, endpoint, window, metadata, priority, tokenBudget, webhook, json, apiKeyFile } = flags;
  return [
    `glm-relay batch ${name}`,
    ...args.map(shellWord),
    ...(url === defaultUrl ? [] : ["--url", shellWord(url)]),
    ...(endpoint === undefined ? [] : ["--endpoint", shellWord(endpoint)]),
    ...(window === undefined || window === defaultWindow ? [] : ["--window", shellWord(window)]),
    ...Object.entries(metadata ?? {}).flatMap(([key, value]) => ["--metadata", shellWord(`${key}=${value}`)]),
    ...(priority === undefined ? [] : ["--priority", String(priority)]),
    ...(tokenBudget === undefined ? [] : ["--token-budget", String(tokenBudget)]),
    ...(webhook === undefined ? [] : ["--webhook", shellWord(webhook)]),
    ...(apiKeyFile === undefined ? [] : ["--api-key-file", shellWord(apiKeyFile)]),
    ...(json ? ["--json"] : []),
  ].join(" ");
}
