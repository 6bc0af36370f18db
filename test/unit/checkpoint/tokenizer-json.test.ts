/** tokenizer.json of GLM-4: the same tokens as the ranks it was made of, or a refusal that says why not. */

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { parseTokenizerJson } from "../../../checkpoint/tokenizer-json.js";
import { RelayError } from "../../../common/errors.js";
import { openTokenizer } from "../../../coordinator/prompt/tokenizer.js";
import { glm4 } from "../../../models/glm4.js";
import { glm4_9b } from "../../../models/glm4-9b.js";
import { cl100kTokens, rankLines, smallTokens } from "../prompt/ranks-fixture.js";
import { variedTexts } from "../prompt/sentencepiece-fixture.js";
import { temporaryDirectory } from "./model-fixture.js";

const facts = glm4_9b.tokenizer as Extract<typeof glm4_9b.tokenizer, { kind: "tiktoken" }>;

/** Each byte as byte-level BPE shows it: visible Latin-1 as itself, the rest from U+0100 on. */
const characters = (() => {
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(visible ? byte : next++);
  });
})();
const shown = (token: Uint8Array) => Array.from(token, (byte) => characters[byte]!).join("");

/** The file that the transformers package makes of ranks: every way to make a token of two others is a merge. */
function jsonOf(tokens: readonly Uint8Array[], form: "pairs" | "strings" = "strings"): any {
  const names = tokens.map(shown);
  const known = new Set(names);
  const merges = names.flatMap((name) => {
    const cuts = Array.from({ length: name.length - 1 }, (_, i) => [name.slice(0, i + 1), name.slice(i + 1)]);
    return cuts.filter(([left, right]) => known.has(left!) && known.has(right!));
  });
  return {
    version: "1.0",
    added_tokens: facts.specialTokens.map((content, i) => ({
      id: tokens.length + i,
      content,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "Split", pattern: { Regex: facts.pattern }, behavior: "Isolated", invert: false },
        { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      vocab: Object.fromEntries(names.map((name, id) => [name, id])),
      merges: form === "pairs" ? merges : merges.map((pair) => pair.join(" ")),
    },
  };
}

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
      'gives the id 7 to "[gMASK]", expected',
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
