/** Where the ends of batches may be told, and how that is signed: options of `coordinator` and `up`. */
import { resolve } from "node:path";
import { type Command, InvalidArgumentError } from "commander";
import { isWebhookHost, webhookHostsMax } from "../coordinator/batches/webhook-hosts.js";
import { CommandError, exitStatus } from "./errors.js";

export interface WebhookFlags {
  webhookHosts?: string[];
  webhookSecretFile?: string;
}

export function addWebhookOptions(command: Command): Command {
  return command
    .option(
      "--webhook-hosts <hosts>",
      "hosts to which batches may have their end told, HOST or HOST:PORT with commas between, * for every host (default: none)",
      hosts,
    )
    .option(
      "--webhook-secret-file <file>",
      "file with the secret that signs webhooks, whsec_ and base64 (default: one that is made in the data directory)",
    );
}

/**
 * @param batches Whether there will be any.
 * @throws CommandError for an option that would do nothing.
 */
export function requireUse({ webhookHosts, webhookSecretFile }: WebhookFlags, batches: boolean): void {
  const refuse = (reason: string) => {
    throw new CommandError(reason, "invalid_configuration", exitStatus.badUsage);
  };
  if (webhookSecretFile !== undefined && webhookHosts === undefined) {
    refuse("option '--webhook-secret-file <file>' needs --webhook-hosts: without hosts nothing is signed");
  }
  if (webhookHosts !== undefined && !batches) {
    refuse("option '--webhook-hosts <hosts>' needs --data: without it there are no batches");
  }
}

/** The same options for a coordinator that somebody starts. */
export function webhookArguments({ webhookHosts, webhookSecretFile }: WebhookFlags): string[] {
  return [
    ...(webhookHosts === undefined ? [] : ["--webhook-hosts", webhookHosts.join(",")]),
    ...(webhookSecretFile === undefined ? [] : ["--webhook-secret-file", resolve(webhookSecretFile)]),
  ];
}

function hosts(text: string): string[] {
  const words = text.split(",").map((word) => word.trim());
  const bad = words.find((word) => !isWebhookHost(word));
  if (bad === undefined && words.length <= webhookHostsMax) return words;
  throw new InvalidArgumentError(
    `Expected 1 to ${webhookHostsMax} of HOST, HOST:PORT or *, with commas between.`,
  );
}
