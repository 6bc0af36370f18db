/** Weights that are not read: each is refused as what it is, with what to use instead. */
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { openModel } from "../../../checkpoint/index.js";
import { tensor, tinyTensors, writeTinyModel } from "./model-fixture.js";

const instead = "; expected the unquantized checkpoint (--quantization int4 rounds it when it is loaded)";

async function expectRefusal(directory: string, message: string): Promise<void> {
  await expect(openModel(directory)).rejects.toMatchObject({ code: "invalid_model", message });
}

describe("GGUF", () => {
  it("as the model, or as a directory's only weights", async () => {
    const directory = await writeTinyModel();
    const file = join(directory, "glm-4-9b-Q4_K_M.GGUF");
    writeFileSync(file, "GGUF");
    // Beside weights that are read it does no harm.
    await openModel(directory);
    const message = `${file} is a GGUF file, which cannot be read yet${instead}`;
    await expectRefusal(file, message);
    rmSync(join(directory, "model.safetensors"));
    await expectRefusal(directory, message);
    rmSync(join(directory, "config.json"));
    await expectRefusal(directory, message);
    await expectRefusal(join(directory, "none.gguf"), message.replace("glm-4-9b-Q4_K_M.GGUF", "none.gguf"));
  });

  it.each([
    ["GGUF", "is a GGUF file"],
    ["ggml", "is a file of chatglm.cpp"],
  ])("under the name of a PyTorch file: %s", async (magic, message) => {
    const directory = await writeTinyModel({ format: "torch" });
    writeFileSync(join(directory, "pytorch_model.bin"), `${magic}\x03\x00\x00\x00`);
    await expect(openModel(directory)).rejects.toThrow(`pytorch_model.bin ${message}`);
  });
});

describe("quantized weights", () => {
  it.each([
    [{ quant_method: "gptq", bits: 4 }, "GPTQ"],
    [{ quant_method: "awq" }, "AWQ"],
    [{ quant_method: "compressed-tensors" }, '"compressed-tensors"'],
    [{ quant_method: "__proto__" }, '"__proto__"'],
    [{ bits: 4 }, "another program"],
  ])("by config.json: %j", async (quantization_config, by) => {
    const directory = await writeTinyModel({ config: { quantization_config } });
    const path = join(directory, "config.json");
    await expectRefusal(
      directory,
      `${path} has a "quantization_config": the weights are quantized by ${by}, which cannot be read yet${instead}`,
    );
  });

  it("by the authors' quantization_bit", async () => {
    await openModel(await writeTinyModel({ config: { quantization_bit: 0, quantization_config: null } }));
    const directory = await writeTinyModel({ config: { quantization_bit: 4 } });
    await expect(openModel(directory)).rejects.toThrow(
      `config.json has "quantization_bit" as 4: the weights are quantized by the model's authors`,
    );
  });

  it.each([
    ["qweight", "I32", "weights quantized by GPTQ or AWQ"],
    ["weight", "I8", "quantized weights"],
  ])("by their tensors, whatever config.json says: %s of %s", async (part, dtype, message) => {
    const name = `transformer.encoder.layers.0.mlp.dense_4h_to_h.${part}`;
    const bytes = { ...tensor(name, [16, 24], "F32"), dtype };
    const quantized = dtype === "I8" ? { ...bytes, shape: [32, 48] } : bytes;
    const tensors = tinyTensors().filter((one) => !one.name.endsWith("layers.0.mlp.dense_4h_to_h.weight"));
    const directory = await writeTinyModel({ tensors: [...tensors, quantized] });
    await expect(openModel(directory)).rejects.toThrow(message);
    await expect(openModel(directory)).rejects.toThrow(instead);
  });
});
