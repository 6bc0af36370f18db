/**
 * What an earlier run left in the output file: which requests are settled, and a file that holds their
 * lines only. Nothing is changed unless every line is understood and belongs to this input.
 */
import { existsSync } from "node:fs";
import { type FileHandle, open, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { CommandError } from "../errors.js";
import { formatCount, showValue } from "../text.js";
import { type Line, readLines } from "./lines.js";
import { type OutputLine, outputLineBytesMax, parseOutputLine, type Usage } from "./output-line.js";

export interface Earlier {
  /** The custom_ids that have their line. */
  settled: Set<string>;
  done: number;
  failed: number;
  usage: Usage;
}

/**
 * Reads the output file and drops a torn last line, lines that failed for a passing reason, and repeated ones.
 * @param lineOf The custom_ids of the input.
 * @throws CommandError when a line is not one of this batch's output; the file is unchanged then.
 */
export async function resume(
  file: string,
  input: string,
  lineOf: ReadonlyMap<string, number>,
): Promise<Earlier> {
  const earlier: Earlier = {
    settled: new Set(),
    done: 0,
    failed: 0,
    usage: { promptTokens: 0, completionTokens: 0 },
  };
  if (!existsSync(file)) return earlier;
  let clean = true;
  const check = (customId: string, line: Line) => {
    if (lineOf.has(customId)) return;
    throw new CommandError(
      `${file}:${line.number}: custom_id ${showValue(customId)} is not in ${input}: ` +
        "the file belongs to another batch; nothing was changed",
    );
  };
  for await (const { line, output, keep } of sift(file, check)) {
    if (!keep || !line.ended) clean = false;
    if (!keep || output === null) continue;
    earlier.settled.add(output.customId);
    earlier[output.verdict === "done" ? "done" : "failed"] += 1;
    earlier.usage.promptTokens += output.usage.promptTokens;
    earlier.usage.completionTokens += output.usage.completionTokens;
  }
  if (!clean) await rewrite(file, check);
  return earlier;
}

interface Sifted {
  line: Line;
  output: OutputLine | null;
  keep: boolean;
}

async function* sift(
  file: string,
  check: (customId: string, line: Line) => void,
): AsyncGenerator<Sifted, void> {
  const settled = new Set<string>();
  for await (const line of readLines(file, outputLineBytesMax)) {
    const output = line.bytes === null ? null : parseOutputLine(line.bytes);
    if (output === null) {
      if (line.ended) {
        throw new CommandError(
          `${file}:${line.number}: not a line of a batch's output, expected an object with custom_id, ` +
            `response and error of at most ${formatCount(outputLineBytesMax)} bytes; nothing was changed`,
        );
      }
      yield { line, output, keep: false };
      continue;
    }
    check(output.customId, line);
    const keep = output.verdict !== "passing" && !settled.has(output.customId);
    if (keep) settled.add(output.customId);
    yield { line, output, keep };
  }
}

/** Through a file beside it and a rename: whenever this is cut off, one of the two is whole. */
async function rewrite(file: string, check: (customId: string, line: Line) => void): Promise<void> {
  const beside = `${file}.glm-relay-tmp`;
  let handle: FileHandle | null = null;
  try {
    const { mode } = await stat(file);
    handle = await open(beside, "w", mode);
    for await (const { line, keep } of sift(file, check)) {
      if (keep) await handle.appendFile(Buffer.concat([line.bytes!, Buffer.from("\n")]));
    }
    await handle.sync();
    await handle.close();
    handle = null;
    await rename(beside, file);
    await syncFolder(file);
  } catch (error) {
    await handle?.close();
    await rm(beside, { force: true });
    if (error instanceof CommandError) throw error;
    throw new CommandError(`cannot rewrite ${file}: ${(error as Error).message}`);
  }
}

/** A new name is safe from a power failure when its folder is written. */
export async function syncFolder(file: string): Promise<void> {
  const folder = await open(dirname(file), "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}
