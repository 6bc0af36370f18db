/** Where the ends of batches may be told, and how that is signed: options of `coordinator` and `up`. */
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

/** @throws CommandError for a secret that nothing would be signed with. */
export function requireWebhookHosts({ webhookHosts, webhookSecretFile }: WebhookFlags): void {
  if (webhookSecretFile === undefined || webhookHosts !== undefined) return;
  throw new CommandError(
    "option '--webhook-secret-file <file>' needs --webhook-hosts: without hosts nothing is signed",
    "invalid_configuration",
    exitStatus.badUsage,
  );
}

/** The same options for a coordinator that somebody starts. */
export function webhookArguments({ webhookHosts, webhookSecretFile }: WebhookFlags): string[] {
  return [
    ...(webhookHosts === undefined ? [] : ["--webhook-hosts", webhookHosts.join(",")]),
    ...(webhookSecretFile === undefined ? [] : ["--webhook-secret-file", webhookSecretFile]),
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
