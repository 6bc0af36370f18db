import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { judge, type Question, readQuestions, tally } from "../../../cli/questions.js";
import { scratch } from "./support.js";

const question = (task: string, answer: string): Question => ({
  task,
  answer,
  messages: [{ role: "user", content: "?" }],
});

describe("the demo's questions", () => {
  it("judges an answer by its text without surrounding space", () => {
    expect(judge(question("add", "12"), " 12\n").kind).toBe("right");
    expect(judge(question("add", "12"), "12.").kind).toBe("wrong");
  });

  it("counts right, wrong and failed answers per task and in all", () => {
    const rows = tally([
      judge(question("add", "1"), "1"),
      judge(question("copy", "a"), "b"),
      judge(question("add", "2"), "3"),
      { kind: "failed", question: question("copy", "c"), reason: "gone" },
    ]);
    expect(rows).toEqual([
      ["add", "1", "1", "0"],
      ["copy", "0", "1", "1"],
      ["all", "1", "2", "1"],
    ]);
  });

  it("names file and line of what it cannot read", () => {
    const file = join(scratch(), "questions.jsonl");
    writeFileSync(file, `${JSON.stringify({ ...question("add", "1"), split: "held-out" })}\n\n`);
    expect(readQuestions(file)).toEqual([question("add", "1")]);
    writeFileSync(file, `${JSON.stringify(question("add", "1"))}\n{"task":"add"}\n`);
    expect(() => readQuestions(file)).toThrow(`${file}:2: expected an object with task, messages and answer`);
    writeFileSync(file, "\n");
    expect(() => readQuestions(file)).toThrow(/holds no questions/);
    expect(() => readQuestions("/nonexistent")).toThrow(/cannot read the demo questions/);
  });
});
