/** `node dist/bench/random-model.js --like chatglm2-6b --layers 8 --to DIR`: writes a model of random weights. */
import { mkdirSync } from "node:fs";
import { Command, Option } from "commander";
import { integer } from "../cli/options.js";
import { formatBytes } from "../cli/text.js";
import { Progress } from "./progress.js";
import { type ShapeName, shapes, writeRandomCheckpoint } from "./random-checkpoint.js";

interface Flags {
  like: ShapeName;
  layers?: number;
  context?: number;
  seed: number;
  to: string;
}

const program = new Command("random-model")
  .description("Writes a ChatGLM3 checkpoint of random float16 weights, for measuring memory and speed.")
  .addOption(new Option("--like <shape>", "shape").choices(Object.keys(shapes)).makeOptionMandatory())
  .option("--layers <n>", "layers (default: the shape's own)", integer(1, 1_000))
  .option("--context <tokens>", "context length (default: the shape's own)", integer(1, 2 ** 20))
  .option("--seed <n>", "seed of the weights", integer(0, 2 ** 32 - 1), 1)
  .requiredOption("--to <dir>", "directory, made if it is not there")
  .action(async (flags: Flags) => {
    mkdirSync(flags.to, { recursive: true });
    const own = shapes[flags.like];
    const shape = {
      ...own,
      layerCount: flags.layers ?? own.layerCount,
      contextLength: flags.context ?? own.contextLength,
    };
    let bar: Progress | undefined;
    await writeRandomCheckpoint({
      directory: flags.to,
      shape,
      seed: flags.seed,
      progress: (written, total) => {
        bar ??= new Progress("writing weights", total, formatBytes);
        bar.update(written);
      },
    });
  });
await program.parseAsync();
