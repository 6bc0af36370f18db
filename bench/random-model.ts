/** `node dist/bench/random-model.js --like chatglm2-6b --layers 8 --to DIR`: writes a model of random weights. */
import { mkdirSync } from "node:fs";
import { Command } from "commander";
import { integer } from "../cli/options.js";
import {
  type AnyName,
  addRandomModelOptions,
  anyNames,
  type RandomModelFlags,
  writeModel,
} from "./options.js";

const program = new Command("random-model").description(
  "Writes a checkpoint of random weights, for measuring memory and speed.",
);
await addRandomModelOptions(program, {}, anyNames)
  .option("--seed <n>", "seed of the weights", integer(0, 2 ** 32 - 1), 1)
  .requiredOption("--to <dir>", "directory, made if it is not there")
  .action(async (flags: RandomModelFlags<AnyName> & { seed: number; to: string }) => {
    mkdirSync(flags.to, { recursive: true });
    await writeModel(flags.to, flags, flags.seed);
  })
  .parseAsync();
