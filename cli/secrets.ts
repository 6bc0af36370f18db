/** Secrets that commands take from files, so that they stand in no list of processes. No message holds one. */
import { readFileSync, statSync } from "node:fs";
import type { Command } from "commander";
import { CommandError, exitStatus } from "./errors.js";

const maxSecretBytes = 4 * 1024;

/**
 * The only line of a file.
 * @param option As the command line calls it, for the message.
 * @throws CommandError (bad usage) naming option and file.
 */
export function readSecretFile(file: string, option: string): string {
  let text: string;
  try {
    const { size } = statSync(file);
    if (size > maxSecretBytes) throw new Error(`it has ${size} bytes, expected at most ${maxSecretBytes}`);
    text = readFileSync(file, "utf8");
  } catch (error) {
    throw unfit(option, file, `cannot be read: ${(error as Error).message}`);
  }
  const secret = text.replace(/\r?\n$/, "");
  if (secret === "" || secret.includes("\n"))
    throw unfit(option, file, "Expected one line that is not empty.");
  return secret;
}

/** The URL of a Redis with the password of a file in the place of its own. */
export function redisWithPassword(url: string, passwordFile: string | undefined): string {
  if (passwordFile === undefined) return url;
  const parsed = new URL(url);
  parsed.password = encodeURIComponent(readSecretFile(passwordFile, "--redis-password-file <file>"));
  return parsed.href;
}

export function addApiKeyOption(command: Command): Command {
  return command.option(
    "--api-key-file <file>",
    "file with the key of a coordinator that has keys (default: GLM_RELAY_API_KEY, else OPENAI_API_KEY)",
  );
}

/**
 * What a command sends to a coordinator that has keys: of --api-key-file, else of the environment.
 * @throws CommandError (bad usage) for a file or a variable that holds none.
 */
export function clientKey({ apiKeyFile }: { apiKeyFile?: string }, env = process.env): string | null {
  const option = "--api-key-file <file>";
  if (apiKeyFile !== undefined)
    return asKey(readSecretFile(apiKeyFile, option).trim(), `the file of ${option}`);
  const { GLM_RELAY_API_KEY_FILE: file } = env;
  if (file)
    return asKey(readSecretFile(file, "environment variable GLM_RELAY_API_KEY_FILE").trim(), `'${file}'`);
  for (const name of ["GLM_RELAY_API_KEY", "OPENAI_API_KEY"]) {
    const key = env[name];
    if (key) return asKey(key, `environment variable ${name}`);
  }
  return null;
}

export function authorization(key: string | null): Record<string, string> {
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

function asKey(text: string, where: string): string {
  if (/^[\x21-\x7e]+$/.test(text)) return text;
  throw new CommandError(
    `${where} holds no API key: expected ASCII characters without spaces`,
    "invalid_configuration",
    exitStatus.badUsage,
  );
}

function unfit(option: string, file: string, fault: string): CommandError {
  return new CommandError(
    `option '${option}' argument '${file}' is invalid. ${fault}`,
    "invalid_configuration",
    exitStatus.badUsage,
  );
}
