import { resolve } from "node:path";
import { Command } from "commander";
import { describe, expect, it } from "vitest";
import { addWebhookOptions, requireUse, type WebhookFlags, webhookArguments } from "../../../cli/webhooks.js";

function parse(...args: string[]): WebhookFlags {
  const command = addWebhookOptions(new Command())
    .exitOverride()
    .configureOutput({ writeErr: () => {} });
  return command.parse(args, { from: "user" }).opts();
}

describe("the options of webhooks", () => {
  it("reach the coordinator that somebody starts as they were given", () => {
    const given = ["--webhook-hosts", " a.example, b:81,[::1]:9000 ,*", "--webhook-secret-file", "secret"];
    const flags = parse(...given);
    expect(flags).toEqual({
      webhookHosts: ["a.example", "b:81", "[::1]:9000", "*"],
      webhookSecretFile: "secret",
    });
    expect(parse(...webhookArguments(flags))).toEqual({ ...flags, webhookSecretFile: resolve("secret") });
    expect(webhookArguments(parse())).toEqual([]);
  });

  it("have bounds", () => {
    const many = Array.from({ length: 65 }, (_, index) => `h${index}`);
    expect(parse("--webhook-hosts", many.slice(1).join(",")).webhookHosts).toHaveLength(64);
    for (const text of [many.join(","), "", "a,,b", "a b", "https://a"]) {
      expect(() => parse("--webhook-hosts", text)).toThrow(/Expected 1 to 64 of HOST, HOST:PORT or \*/);
    }
  });

  it("are refused where they would do nothing", () => {
    expect(() => requireUse({ webhookSecretFile: "s" }, true)).toThrow(/needs --webhook-hosts/);
    expect(() => requireUse({ webhookHosts: ["a"] }, false)).toThrow(/needs --data/);
    expect(() => requireUse({}, false)).not.toThrow();
    expect(() => requireUse({ webhookHosts: ["a"], webhookSecretFile: "s" }, true)).not.toThrow();
  });
});
