import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { formatBar, formatCount, formatDuration, shellWord, showValue } from "../../../cli/text.js";

describe("text for people", () => {
  it("writes durations as people say them", () => {
    expect([0.42, 9.96, 42.4, 59.6, 205, 3_599.6, 7_500, 90_000].map(formatDuration)).toEqual([
      "0.4 s",
      "10.0 s",
      "42 s",
      "1 min 0 s",
      "3 min 25 s",
      "1 h 0 min",
      "2 h 5 min",
      "25 h 0 min",
    ]);
  });

  it("groups the digits of counts", () => {
    expect([0, 999.6, 1_234_567].map(formatCount)).toEqual(["0", "1,000", "1,234,567"]);
  });

  it("fills a bar", () => {
    expect([0, 0.5, 1].map((fraction) => formatBar(fraction, 4))).toEqual(["[....]", "[##..]", "[####]"]);
  });

  it("shows values without walking into them", () => {
    expect([null, true, 1.5, "a\n", { a: 1 }, [1]].map(showValue)).toEqual([
      "null",
      "true",
      "1.5",
      '"a\\n"',
      "{...}",
      "[...]",
    ]);
    expect(showValue("x".repeat(100))).toBe(`"${"x".repeat(60)}"...`);
  });

  it("quotes what a shell would not take for one word", () => {
    expect(shellWord("/data/in-1.jsonl")).toBe("/data/in-1.jsonl");
    const words = ["two words", "it's $HOME", "", "a;b", "熊\n"];
    const printed = execFileSync("sh", ["-c", `printf '%s|' ${words.map(shellWord).join(" ")}`], {
      encoding: "utf8",
    });
    expect(printed).toBe(words.map((word) => `${word}|`).join(""));
  });
});
