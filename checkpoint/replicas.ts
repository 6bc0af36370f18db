/**
 * Compares the copies of tensors that every rank of a tensor-parallel checkpoint holds whole: shards of
 * different moments of a training fit in their shapes, and only these bytes tell.
 */
import { RelayError } from "../common/errors.js";
import { readFully, type TensorEntry, type WeightsFile, withFile } from "./safetensors.js";

const chunkBytes = 1024 * 1024;

/**
 * @param replicas Of each tensor the copies in the order of the ranks, with one type and shape.
 * @throws RelayError invalid_model naming the tensor and two files whose copies differ.
 */
export async function checkReplicas(replicas: TensorEntry[][], ranks: WeightsFile[]): Promise<void> {
  const [first, ...others] = ranks;
  for (const [index, rank] of others.entries()) {
    const pairs = replicas.map((copies) => [copies[0]!, copies[index + 1]!] as const);
    // Tensors may share bytes, and a pickle can say so again and again: no more is read than there is.
    const bytes = pairs.reduce((sum, [, { byteLength }]) => sum + byteLength, 0);
    if (bytes > rank.byteLength) {
      fail(rank.file, `has ${rank.byteLength} bytes, but tensors of ${bytes} that all ranks hold`);
    }
    await compare(first!.file, rank.file, pairs);
  }
}

async function compare(
  firstFile: string,
  otherFile: string,
  pairs: (readonly [TensorEntry, TensorEntry])[],
): Promise<void> {
  const [a, b] = [Buffer.alloc(chunkBytes), Buffer.alloc(chunkBytes)];
  await withFile(firstFile, (first) =>
    withFile(otherFile, async (other) => {
      for (const [one, two] of pairs) {
        for (let done = 0; done < one.byteLength; done += chunkBytes) {
          const length = Math.min(chunkBytes, one.byteLength - done);
          await readFully(first, a.subarray(0, length), one.byteOffset + done, firstFile);
          await readFully(other, b.subarray(0, length), two.byteOffset + done, otherFile);
          if (a.compare(b, 0, length, 0, length) === 0) continue;
          fail(
            otherFile,
            `has another tensor ${one.name} than ${firstFile}, expected the same in every rank`,
          );
        }
      }
    }),
  );
}

function fail(file: string, problem: string): never {
  throw new RelayError("invalid_model", `${file} ${problem}`);
}
