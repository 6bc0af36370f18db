import { Command } from "commander";
import { describe, expect, it } from "vitest";
import { overridesText, parseOverrides } from "../../../checkpoint/overrides.js";
import { addModelOptions, type ModelFlags, modelArguments, openOptions } from "../../../cli/model-options.js";
import { glmRelay } from "./support.js";

function parse(args: string[]): ModelFlags {
  const command = addModelOptions(new Command().exitOverride().configureOutput({ writeErr: () => {} }));
  return command.parse(args, { from: "user" }).opts();
}

describe("--set", () => {
  it("takes JSON, else a text, again and again", () => {
    const args = [
      "rope_scaling=null",
      "seq_length=4096",
      "torch_dtype=float32",
      'eos_token_id=[1, "2=3"]',
      "__proto__={}",
      "empty=",
    ];
    const { set } = parse(args.flatMap((one) => ["--set", one]));
    expect(Object.entries(set!)).toEqual([
      ["rope_scaling", null],
      ["seq_length", 4096],
      ["torch_dtype", "float32"],
      ["eos_token_id", [1, "2=3"]],
      ["__proto__", {}],
      ["empty", ""],
    ]);
  });

  it.each([
    ["rope_scaling", /FIELD=VALUE/],
    ["=1", /FIELD=VALUE/],
    ["a b=1", /FIELD=VALUE/],
    [`${"a".repeat(129)}=1`, /FIELD=VALUE/],
    ["a=1e999", /below 1e308/],
    ['a={"b": [-1e999]}', /below 1e308/],
    [`a=${"[".repeat(5_000)}`, /at most 512/],
  ])("refuses %s", (text, message) => {
    expect(() => parse(["--set", text])).toThrow(message);
  });

  it("takes each field once, and not without end", () => {
    expect(() => parse(["--set", "a=1", "--set", "a=2"])).toThrow('Expected "a" once');
    const many = Array.from({ length: 17 }, (_, i) => ["--set", `f${i}=1`]).flat();
    expect(() => parse(many)).toThrow("at most 16 fields");
    // The most that is taken travels to a worker.
    const longest = Array.from({ length: 16 }, (_, i) => ["--set", `f${i}=${"\u0001".repeat(512)}`]).flat();
    const { set } = parse(longest);
    expect(parseOverrides(overridesText(set))).toEqual(set);
  });

  it("ends with status 2 and names the argument", async () => {
    const result = await glmRelay(["up", "--model", "m", "--stages", "2", "--set", "rope"]);
    expect(result.stderr).toMatch(/'--set <field=value>' argument 'rope' is invalid. Expected FIELD=VALUE/);
    expect(result.status).toBe(2);
  });
});

it("a child process gets the same", () => {
  const args = ["--set", "a=null", "--set", "b=x y", "--set", 'c="7"', "--prefix-encoder", "/prefix"];
  expect(parse(modelArguments(parse(args)))).toEqual(parse(args));
  expect(modelArguments(parse([]))).toEqual([]);
  expect(openOptions(parse([]))).toEqual({ overrides: {}, prefixEncoder: null });
  expect(openOptions(parse(args))).toEqual({
    overrides: { a: null, b: "x y", c: "7" },
    prefixEncoder: "/prefix",
  });
});
