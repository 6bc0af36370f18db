/** Files of byte ranks: what is read, and what is refused. */
import { expect, it } from "vitest";
import { parseRanks } from "../../../checkpoint/ranks.js";
import { RelayError } from "../../../common/errors.js";
import { rankLines, smallTokens } from "../prompt/ranks-fixture.js";

const text = rankLines(smallTokens());
const lines = text.trimEnd().split("\n");
const parse = (content: string) => parseRanks(Buffer.from(content), "/models/x/tokenizer.model");

it("reads the tokens by rank, in whatever order the lines are, with either line end", () => {
  const { tokens } = parse(text);
  expect(tokens).toHaveLength(lines.length);
  expect(tokens[256]).toBe("\xe4\xbd");
  expect(parse([...lines].reverse().join("\r\n")).tokens).toEqual(tokens);
});

it.each<[string, string, string]>([
  ["nothing", "", "no token is the byte 0x00"],
  ["a SentencePiece file", "\n\x0a\x05<unk>\x15", "line 1 is"],
  ["a line without rank", text.replace("ICA= ", "ICA="), "expected a token in base64, a space and its rank"],
  ["base64 that is cut off", text.replace("aGVsbG8=", "aGVsbG8"), 'is "aGVsbG8 '],
  ["base64 with bits left over", text.replace("aGU=", "aGV="), 'is "aGV= '],
  ["an empty line", text.replace("\n", "\n\n"), 'line 2 is ""'],
  [
    "a line that is missing",
    lines.toSpliced(3, 1).join("\n"),
    `has rank ${lines.length - 1}, expected one below`,
  ],
  ["a rank twice", text.replace(/ 5\n/, " 4\n"), "has rank 4 again"],
  ["a token twice", text.replace("aGU=", "bGw="), 'has the token "bGw=" again'],
  ["a byte that is missing", text.replace("AA== 0", "eHh4eA== 0"), "no token is the byte 0x00"],
  [
    "a token too long",
    `${text}${Buffer.alloc(2000).toString("base64")} ${lines.length}`,
    "expected at most 1024",
  ],
])("refuses %s", (_, content, expected) => {
  expect(() => parse(content)).toThrow(RelayError);
  expect(() => parse(content)).toThrow(expected);
  expect(() => parse(content)).toThrow("/models/x/tokenizer.model: ");
});
