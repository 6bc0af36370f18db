/** The peer's file, read back by the format's rules. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { shapes } from "../../../bench/random-checkpoint.js";
import { writeRandomGguf } from "../../../bench/random-gguf.js";
import { cardTensors } from "../../../checkpoint/card-tensors.js";
import { shapeFrom } from "../../../checkpoint/config.js";
import { published, resized } from "../../../models/published.js";
import { temporaryDirectory } from "../checkpoint/model-fixture.js";

const directory = temporaryDirectory();
const shape = { ...shapes.tiny, hiddenSize: 256, layerCount: 2 };

/** Reads counts, skips metadata, and gives the tensor infos and where their bytes begin. */
class GgufReader {
  readonly #bytes: Buffer;
  #at = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  read() {
    const magic = this.#take(4).toString();
    const [version, tensorCount, keyCount] = [this.#uint32(), this.#uint64(), this.#uint64()];
    const metadata = new Map<string, unknown>();
    for (let key = 0; key < keyCount; key++) metadata.set(this.#string(), this.#value(this.#uint32()));
    const tensors = Array.from({ length: tensorCount }, () => {
      const name = this.#string();
      const sizes = Array.from({ length: this.#uint32() }, () => this.#uint64());
      return { name, sizes, type: this.#uint32(), offset: this.#uint64() };
    });
    return { magic, version, metadata, tensors, dataBegin: Math.ceil(this.#at / 32) * 32 };
  }

  #value(type: number): unknown {
    if (type === 8) return this.#string();
    if (type === 6) return this.#take(4).readFloatLE();
    if (type !== 9) return this.#uint32();
    const item = this.#uint32();
    return Array.from({ length: this.#uint64() }, () => this.#value(item));
  }

  #take(count: number): Buffer {
    this.#at += count;
    return this.#bytes.subarray(this.#at - count, this.#at);
  }

  #uint32 = () => this.#take(4).readUInt32LE();
  #uint64 = () => Number(this.#take(8).readBigUInt64LE());
  #string = () => this.#take(this.#uint64()).toString();
}

describe("a GGUF file of random weights", () => {
  it("has the shape's metadata and tensors, one after the other to the end of the file", async () => {
    const file = join(directory, "model.gguf");
    await writeRandomGguf(file, shape);
    const bytes = readFileSync(file);
    const { magic, version, metadata, tensors, dataBegin } = new GgufReader(bytes).read();
    expect([magic, version]).toEqual(["GGUF", 3]);
    expect(metadata.get("general.architecture")).toBe("chatglm");
    expect(metadata.get("chatglm.block_count")).toBe(2);
    expect(metadata.get("tokenizer.ggml.tokens")).toHaveLength(shape.vocabSize);
    expect(tensors).toHaveLength(3 + 7 * shape.layerCount);
    expect(tensors.find(({ name }) => name === "blk.1.ffn_up.weight")).toMatchObject({
      sizes: [256, 2 * shape.ffnSize],
      type: 2,
    });
    let end = 0;
    for (const { sizes, type, offset } of tensors) {
      expect(offset).toBe(end);
      const values = sizes.reduce((product, size) => product * size, 1);
      const size = type === 0 ? values * 4 : type === 2 ? (values / 32) * 18 : (values / 256) * 210;
      end = Math.ceil((offset + size) / 32) * 32;
    }
    expect(dataBegin + end).toBe(bytes.length);
  });

  it("has a published model's matrices, as many values as its layers and its head have", async () => {
    const { card, config } = resized(published["glm-130b"], { layers: 2, context: 64 });
    const small = {
      ...config,
      hidden_size: 256,
      num_attention_heads: 8,
      inner_hidden_size: 512,
      vocab_size: 512,
    };
    const file = join(directory, "glm-130b.gguf");
    const written = { ...shapeFrom(small, card, null, ""), contextLength: 64 };
    await writeRandomGguf(file, written);
    const { metadata, tensors } = new GgufReader(readFileSync(file)).read();
    expect(metadata.get("chatglm.attention.head_count_kv")).toBe(8);
    expect(metadata.get("chatglm.rope.dimension_count")).toBe(32);
    const matrices = tensors.filter(({ sizes }) => sizes.length === 2);
    const own = cardTensors(card, small).filter(({ sizes }) => sizes.length === 2);
    const shapesOf = (all: readonly (readonly number[])[]) => all.map((sizes) => sizes.join(" x ")).sort();
    // The head is the embedding here, and a tensor of its own there.
    expect(shapesOf(matrices.map(({ sizes }) => sizes.toReversed()))).toEqual(
      shapesOf([...own.map(({ sizes }) => sizes), [512, 256]]),
    );
  });

  it("is not written for rows that are no whole blocks", async () => {
    await expect(writeRandomGguf(join(directory, "none.gguf"), shapes.tiny)).rejects.toThrow(
      "output.weight has rows of 128, expected a multiple of 256 for Q6_K",
    );
  });
});
