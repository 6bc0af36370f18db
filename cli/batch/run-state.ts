/** How far a `batch run` has come: a small file beside its output, there until the output is. */
import { existsSync } from "node:fs";
import { readFile, realpath, rm, stat } from "node:fs/promises";
import { writeDurably } from "../../coordinator/files/durable.js";
import { CommandError } from "../errors.js";
import { newSubmission, type Submission } from "./submit.js";

const version = 1;

/** What an input was when it was submitted. */
interface InputMark {
  path: string;
  bytes: number;
  modifiedMs: number;
}

interface SavedState extends Submission {
  version: number;
  input: InputMark;
}

export class RunState {
  readonly file: string;
  readonly #input: InputMark;
  readonly submission: Submission;
  /** An earlier run left it. */
  readonly resumed: boolean;

  private constructor(file: string, input: InputMark, submission: Submission, resumed: boolean) {
    this.file = file;
    this.#input = input;
    this.submission = submission;
    this.resumed = resumed;
  }

  /**
   * @param output True path of the output.
   * @throws CommandError when the input cannot be read or is not the one of the run that is to be continued, or when
   *   there is an output that no run left unfinished.
   */
  static async open(input: string, output: string): Promise<RunState> {
    const file = `${output}.batch.json`;
    const mark = await markOf(input);
    const saved = await readState(file);
    if (saved === null) {
      if (existsSync(output)) {
        throw new CommandError(`${output} exists already: remove it, or choose another output file`);
      }
      return new RunState(file, mark, newSubmission(), false);
    }
    const { input: earlier, run, fileId, asked, batchId } = saved;
    if (
      earlier.path !== mark.path ||
      earlier.bytes !== mark.bytes ||
      earlier.modifiedMs !== mark.modifiedMs
    ) {
      const what = earlier.path === mark.path ? "that file has changed since" : `not ${mark.path}`;
      throw new CommandError(
        `${file} belongs to a run of ${earlier.path}: ${what}. ` +
          `Remove it to begin anew${batchId === null ? "" : `; its batch is ${batchId}`}`,
      );
    }
    return new RunState(file, mark, { run, fileId, asked, batchId }, true);
  }

  async save(): Promise<void> {
    const state: SavedState = { version, input: this.#input, ...this.submission };
    try {
      await writeDurably(this.file, `${JSON.stringify(state)}\n`);
    } catch (error) {
      throw new CommandError(`cannot write ${this.file}: ${(error as Error).message}`);
    }
  }

  async remove(): Promise<void> {
    await rm(this.file, { force: true });
  }
}

async function markOf(input: string): Promise<InputMark> {
  try {
    const found = await stat(input);
    if (!found.isFile()) throw new Error("not a regular file");
    return { path: await realpath(input), bytes: found.size, modifiedMs: found.mtimeMs };
  } catch (error) {
    throw new CommandError(`cannot read ${input}: ${(error as Error).message}`);
  }
}

async function readState(file: string): Promise<SavedState | null> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw new CommandError(`cannot read ${file}: ${(error as Error).message}`);
  }
  try {
    const state = JSON.parse(text) as SavedState;
    if (isState(state)) return state;
  } catch {
    // Told below.
  }
  throw new CommandError(`${file} is not what a batch run of this version leaves: remove it to begin anew`);
}

function isState(state: SavedState): boolean {
  const isId = (value: unknown) => value === null || typeof value === "string";
  return (
    state?.version === version &&
    typeof state.input?.path === "string" &&
    typeof state.run === "string" &&
    typeof state.asked === "boolean" &&
    isId(state.fileId) &&
    isId(state.batchId)
  );
}
