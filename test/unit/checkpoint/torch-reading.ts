/** Reads bytes as torch.save's file, for tests of what is found and what is refused. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import { readTorchFile } from "../../../checkpoint/torch-file.js";
import { RelayError } from "../../../common/errors.js";
import { temporaryDirectory } from "./model-fixture.js";

export const directory = temporaryDirectory();
export const file = join(directory, "pytorch_model.bin");

export async function read(bytes: Uint8Array) {
  writeFileSync(file, bytes);
  return readTorchFile(file);
}

export async function expectRefusal(bytes: Uint8Array, ...parts: string[]): Promise<void> {
  const error = await read(bytes).then(
    () => null,
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(RelayError);
  expect((error as RelayError).code).toBe("invalid_model");
  for (const part of [file, ...parts]) expect((error as RelayError).message).toContain(part);
}

/** A storage of 8 float16. */
export const sixteen = Uint8Array.from({ length: 16 }, (_, i) => i);
