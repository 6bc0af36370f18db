/** Writes SentencePiece files for tests, and holds the reference implementation for comparison. */
import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { PieceType } from "../../../checkpoint/sentencepiece.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";

export interface FixturePiece {
  text: string;
  score?: number;
  type?: PieceType;
}

export interface FixtureOptions {
  modelType?: number;
  byteFallback?: boolean;
  addDummyPrefix?: boolean;
  removeExtraWhitespaces?: boolean;
  normalizer?: string;
  charsmap?: Uint8Array;
}

const typeNumbers: Record<PieceType, number> = {
  normal: 1,
  unknown: 2,
  control: 3,
  userDefined: 4,
  unused: 5,
  byte: 6,
};

/** A ModelProto. */
export function sentencePieceBytes(pieces: FixturePiece[], options: FixtureOptions = {}): Buffer {
  const messages = pieces.map(({ text, score = 0, type = "normal" }) => {
    const scoreBytes = Buffer.alloc(5, 0x15);
    scoreBytes.writeFloatLE(score, 1);
    return field(1, Buffer.concat([field(1, Buffer.from(text)), scoreBytes, number(3, typeNumbers[type])]));
  });
  const trainer = [number(3, options.modelType ?? 2), number(35, options.byteFallback === false ? 0 : 1)];
  const normalizer = [
    field(1, Buffer.from(options.normalizer ?? "identity")),
    field(2, Buffer.from(options.charsmap ?? [])),
    number(3, options.addDummyPrefix === false ? 0 : 1),
    number(4, options.removeExtraWhitespaces ? 1 : 0),
  ];
  return Buffer.concat([...messages, field(2, Buffer.concat(trainer)), field(3, Buffer.concat(normalizer))]);
}

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Buffer.from([...bytes, value]);
}

export function number(id: number, value: number): Buffer {
  return Buffer.concat([varint(id * 8), varint(value)]);
}

export function field(id: number, value: Uint8Array): Buffer {
  return Buffer.concat([varint(id * 8 + 2), varint(value.length), value]);
}

export const controlPieces: FixturePiece[] = [
  { text: "<unk>", type: "unknown" },
  { text: "<s>", type: "control" },
  { text: "</s>", type: "control" },
];

export const bytePieces: FixturePiece[] = Array.from({ length: 256 }, (_, byte) => ({
  text: `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  type: "byte",
}));

/** A small model of the ChatGLM3 kind: control, bytes, then merges whose score is minus their rank. */
export const smallPieces: FixturePiece[] = [
  ...controlPieces,
  ...bytePieces,
  ...[
    ..."▁helowrdabc0123456789,.!你好世界é😀",
    ..."he ll hell hello ▁hello or ld wor world ▁world ▁▁ ▁▁▁▁ 你好 世界 ab abc bc".split(" "),
  ].map((text, rank) => ({ text, score: -rank })),
];

export function tokenizerDirectory(bytes: Uint8Array): string {
  const directory = temporaryDirectory();
  writeFileSync(join(directory, "tokenizer.model"), bytes);
  return directory;
}

export interface Oracle {
  encodeIds(text: string): number[];
  decodeIds(ids: number[]): string;
}

/** SentencePiece itself. It loads a bad model silently and then encodes everything to nothing. */
export async function openOracle(path: string): Promise<Oracle> {
  const { SentencePieceProcessor } = createRequire(import.meta.url)("sentencepiece-js") as {
    SentencePieceProcessor: new () => Oracle & { load(path: string): Promise<void> };
  };
  const oracle = new SentencePieceProcessor();
  // Each instance adds listeners for errors of the whole process; they are not wanted here.
  const events = ["uncaughtException", "unhandledRejection"] as const;
  const before = events.map((event) => process.listeners(event as "exit"));
  await oracle.load(path);
  for (const [index, event] of events.entries()) {
    for (const listener of process.listeners(event as "exit")) {
      if (!before[index]!.includes(listener)) process.off(event, listener);
    }
  }
  if (oracle.encodeIds("a").length === 0) throw new Error(`the oracle could not load ${path}`);
  return oracle;
}

/** Mulberry32: whole numbers in [0, below), the same for the same seed. */
export function seededRandom(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

const snippets = [
  "你好",
  "人工智能",
  "今天天气怎么样？",
  "，。！？",
  "ＡＢＣ１２３",
  "Hello",
  "world",
  " the quick brown fox",
  "don't",
  "2023-12-25",
  "3.14159",
  "function f(x) { return x + 1; }",
  "\tif (a == b):\n",
  "\r\n",
  "\n\n",
  "    ",
  " ",
  "                   ",
  "😀",
  "👨‍👩‍👧‍👦",
  "🇨🇳",
  "é",
  "e\u0301",
  "ß",
  "Ω≈ç√",
  "العربية",
  "हिन्दी",
  "한국어",
  "ไทย",
  "𝒳𠀀",
  "\u2581",
  "\u00a0",
  "\u3000",
  "\ufeff",
  "\u0000",
  "\u200b",
  "\ufffd",
  "<unk>",
  "<s>",
  "</s>",
  "<0x41>",
  "[gMASK]sop<|user|>",
  "<|assistant|>",
  "```python\n",
  "http://example.com/?a=1&b=2",
  "aaaaaaaaaaaaaaaa",
  "=====",
];

/** Strings of every kind that a tokenizer meets, well-formed UTF-16. */
export function variedTexts(seed: number, count: number): string[] {
  const random = seededRandom(seed);
  const character = (): string => {
    const ranges = [0x80, 0x250, 0x3000, 0xa000, 0x10000, 0x110000];
    const code = random(ranges[random(ranges.length)]!);
    return code >= 0xd800 && code < 0xe000 ? "\ufffd" : String.fromCodePoint(code);
  };
  const cjk = (): string => String.fromCodePoint(0x4e00 + random(0x5200));
  const ascii = (): string => String.fromCharCode(32 + random(95));
  const texts = ["", " ", "\n", "\u0000", "a", "你"];
  while (texts.length < count) {
    let text = "";
    for (let part = random(12); part >= 0; part--) {
      const make = [() => snippets[random(snippets.length)]!, character, cjk, ascii, ascii][random(5)]!;
      for (let i = random(6); i >= 0; i--) text += make();
    }
    texts.push(text);
  }
  return texts;
}
