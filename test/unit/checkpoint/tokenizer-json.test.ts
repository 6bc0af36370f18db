/** tokenizer.json of GLM-4: the same tokens as the ranks it was made of, or a refusal that says why not. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parseTokenizerJson } from "../../../checkpoint/tokenizer-json.js";
import { RelayError } from "../../../common/errors.js";
import { openTokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { cl100kTokens, rankLines, smallTokens, tokenizerJson } from "../prompt/ranks-fixture.js";
import { variedTexts } from "../prompt/sentencepiece-fixture.js";
import { temporaryDirectory } from "./model-fixture.js";

const facts = glm4_9b.tokenizer as Extract<typeof glm4_9b.tokenizer, { kind: "tiktoken" }>;

const jsonOf = (tokens: readonly Uint8Array[], form: "pairs" | "strings" = "strings") =>
  tokenizerJson(tokens, facts, form);

const parse = (value: unknown) =>
  parseTokenizerJson(Buffer.from(JSON.stringify(value)), "/models/x/tokenizer.json", facts);

describe("tokenizer.json", () => {
  it.each(["strings", "pairs"] as const)(
    "gives the ranks of cl100k_base back, merges written as %s",
    (form) => {
      const tokens = cl100kTokens();
      expect(parse(jsonOf(tokens, form)).tokens).toEqual(tokens.map((token) => token.toString("latin1")));
    },
  );

  it("is read where there is no file of ranks, and encodes the same", async () => {
    const tokens = smallTokens();
    const withJson = temporaryDirectory();
    writeFileSync(join(withJson, "tokenizer.json"), JSON.stringify(jsonOf(tokens)));
    const withRanks = temporaryDirectory();
    writeFileSync(join(withRanks, "tokenizer.model"), rankLines(tokens));
    const [json, ranks] = [(await openTokenizer(withJson, glm4))!, (await openTokenizer(withRanks, glm4))!];
    expect(json.stopTokens).toEqual(ranks.stopTokens);
    const plain = { addSpecialTokens: true };
    for (const text of variedTexts(3, 300)) {
      expect(json.encodeText(text, plain)).toEqual(ranks.encodeText(text, plain));
    }
  });

  it("says which ids special tokens have, whatever their order, and which of them are text", async () => {
    const tokens = smallTokens();
    const directory = temporaryDirectory();
    const names = [...glm4.tokenizer.specialTokens].reverse();
    const file = tokenizerJson(tokens, { ...facts, specialTokens: ["<|new|>", ...names] });
    file.added_tokens[0].special = false;
    file.added_tokens.reverse();
    writeFileSync(join(directory, "tokenizer.json"), JSON.stringify(file));
    const tokenizer = (await openTokenizer(directory, glm4))!;
    expect(tokenizer.tokenCount).toBe(tokens.length + names.length + 1);
    expect(tokenizer.decode([tokens.length], { skipSpecialTokens: true })).toBe("<|new|>");
    expect(tokenizer.tokenString(tokens.length + 1)).toBe("<|end_of_video|>");
    const prefix = tokenizer.encodeText("", { addSpecialTokens: true });
    expect(prefix.map((id) => tokenizer.tokenString(id))).toEqual(["[gMASK]", "<sop>"]);
  });

  const small = () => jsonOf(smallTokens());
  const changed = (change: (file: any) => void) => {
    const file = small();
    change(file);
    return file;
  };
  it.each<[string, unknown, string]>([
    [
      "another kind of model",
      changed((f) => (f.model.type = "Unigram")),
      '"model.type" is "Unigram", expected "BPE"',
    ],
    ["no model", changed((f) => delete f.model), '"model" is missing'],
    ["dropout", changed((f) => (f.model.dropout = 0.1)), '"model.dropout" is 0.1'],
    ["a normalizer", changed((f) => (f.normalizer = { type: "NFC" })), '"normalizer" is'],
    [
      "another pattern",
      changed((f) => (f.pre_tokenizer.pretokenizers[0].pattern.Regex = "\\s+")),
      '"pre_tokenizer" splits by "\\\\s+"',
    ],
    [
      "a space in front",
      changed((f) => (f.pre_tokenizer.pretokenizers[1].add_prefix_space = true)),
      "splits by null",
    ],
    ["a gap in the ids", changed((f) => (f.model.vocab["!"] = 1e6)), 'gives "!" the id 1000000'],
    ["an id twice", changed((f) => (f.model.vocab["!"] = f.model.vocab['"'])), "twice"],
    ["a merge of strangers", changed((f) => f.model.merges.push("x yz")), 'has "x yz" at'],
    ["merges in another order", changed((f) => f.model.merges.reverse()), "expected the order of the ids"],
    ["no merges", changed((f) => (f.model.merges = null)), '"merges" is null, expected a list'],
    [
      "special tokens elsewhere",
      changed((f) => (f.added_tokens[2].id = 7)),
      'gives the id 7 to "[gMASK]", expected 272 to 285, each once',
    ],
    [
      "an id of special tokens twice",
      changed((f) => (f.added_tokens[2].id = f.added_tokens[1].id)),
      'gives the id 273 to "[gMASK]", expected',
    ],
    [
      "a special token that takes spaces with it",
      changed((f) => (f.added_tokens[2].lstrip = true)),
      '"lstrip" of "[gMASK]" is true, expected false',
    ],
    [
      "a special token without a name",
      changed((f) => delete f.added_tokens[2].content),
      '"added_tokens" has {"id":274,"special":true} at 2',
    ],
    ["a special token that is missing", changed((f) => f.added_tokens.pop()), 'lacks "<|end_of_video|>"'],
    [
      "a token that is no bytes",
      changed((f) => {
        const { vocab } = f.model;
        vocab["好"] = vocab["!"];
        delete vocab["!"];
      }),
      'has the token "好", expected bytes',
    ],
  ])("with %s is refused", (_, file, message) => {
    expect(() => parse(file)).toThrow(RelayError);
    expect(() => parse(file)).toThrow(message);
  });
});
