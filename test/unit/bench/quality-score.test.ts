import { describe, expect, it } from "vitest";
import {
  answerNats,
  type ConfigurationScore,
  draw,
  type HeldOutLine,
  isRight,
  qualityTable,
  replaceBetween,
} from "../../../bench/quality-score.js";
import { uniform } from "../../../bench/random-values.js";

const line = (task: string, answer: string): HeldOutLine => ({
  task,
  split: "heldout",
  messages: [{ role: "user", content: "?" }],
  answer,
});

describe("judging an answer", () => {
  const question = line("add", "18");
  it.each([
    ["18", "stop", true],
    ["18", "length", false],
    ["18.", "stop", false],
    [" 18", "stop", false],
    ["", "stop", false],
  ])("%j that ends with %s counts: %s", (text, finishReason, right) => {
    expect(isRight(question, { text, finishReason })).toBe(right);
  });
});

describe("the likelihood of an answer", () => {
  it("is that of its own tokens, not of the prompt's", () => {
    expect(answerNats([null, -5, -0.25, -0.5], 2)).toBeCloseTo(0.75, 12);
  });

  it("is refused when a token has none", () => {
    expect(() => answerNats([null, -1], 2)).toThrow("2 log-probabilities, expected more than the answer's 2");
    expect(() => answerNats([null, null, -1], 2)).toThrow("has no log-probability");
  });
});

describe("the table", () => {
  const lines = [line("a", "1"), line("a", "2"), line("b", "3")];
  const score = (name: string, texts: string[], nats: number): ConfigurationScore => ({
    name,
    answers: texts.map((text) => ({ text, finishReason: "stop" })),
    likelihood: { nats, tokens: 4 },
  });
  const scores = [score("float16", ["1", "x", "3"], 2), score("int4", ["1", "2", "y"], 3)];

  it("has accuracy per task, their mean, likelihood, and differences to the reference", () => {
    const rows = qualityTable(lines, scores, "float16")
      .split("\n")
      .map((row) => row.split("|").map((cell) => cell.trim()));
    const cells = Object.fromEntries(rows.map(([, name, ...rest]) => [name, rest.slice(0, -1)]));
    expect(cells).toMatchObject({
      task: ["n", "float16", "int4"],
      a: ["2", "50.0", "100.0"],
      b: ["1", "100.0", "0.0"],
      mean: ["", "75.00", "50.00"],
      "mean, against float16": ["", "0.00", "-25.00"],
      "answers unlike float16's": ["", "0", "2"],
      "NLL per answer token": ["4", "0.50000", "0.75000"],
      "NLL, against float16": ["", "0.00000", "+0.25000"],
    });
  });

  it("has no differences without the reference", () => {
    expect(qualityTable(lines, scores.slice(1), "float16")).not.toContain("against");
  });
});

describe("putting the table into a text", () => {
  it("replaces what stands between the markers, again and again", () => {
    const once = replaceBetween("before\n<a>\nold\n<b>\nafter", "<a>", "<b>", "new");
    expect(once).toBe("before\n<a>\n\nnew\n\n<b>\nafter");
    expect(replaceBetween(once, "<a>", "<b>", "new")).toBe(once);
  });

  it("refuses a text without them", () => {
    expect(() => replaceBetween("<b> then <a>", "<a>", "<b>", "new")).toThrow("expected a line <a>");
  });
});

describe("drawing lines", () => {
  const items = Array.from({ length: 10 }, (_, index) => index);

  it("gives each at most once, the same ones for the same seed", () => {
    const drawn = draw(items, 6, uniform(1));
    expect(new Set(drawn).size).toBe(6);
    expect(draw(items, 6, uniform(1))).toEqual(drawn);
    expect(draw(items, 6, uniform(2))).not.toEqual(drawn);
  });

  it("gives all when more are asked for than there are", () => {
    expect(draw(items, 11, uniform(1)).sort((a, b) => a - b)).toEqual(items);
  });

  it("prefers none", () => {
    const random = uniform(3);
    const counts = new Array<number>(10).fill(0);
    for (let round = 0; round < 10_000; round++) for (const item of draw(items, 3, random)) counts[item]!++;
    for (const count of counts) expect(Math.abs(count - 3_000)).toBeLessThan(250);
  });
});
