// Generates TypeScript types from the .proto files with proto-loader's own generator and the
// options that proto/load.ts uses at run time, so types and objects agree.
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "generated");
const sources = readdirSync(here)
  .filter((name) => name.endsWith(".proto"))
  .map((name) => join(here, name));
const newest = Math.max(
  ...[...sources, fileURLToPath(import.meta.url)].map((file) => statSync(file).mtimeMs),
);
const stamp = join(out, "internal.ts");
if (!existsSync(stamp) || statSync(stamp).mtimeMs < newest) {
  rmSync(out, { recursive: true, force: true });
  const loader = dirname(createRequire(import.meta.url).resolve("@grpc/proto-loader/package.json"));
  execFileSync(
    process.execPath,
    [
      join(loader, "build/bin/proto-loader-gen-types.js"),
      "--longs=Number",
      "--enums=String",
      "--defaults",
      "--arrays",
      "--oneofs",
      "--grpcLib=@grpc/grpc-js",
      "--importFileExtension=.js",
      `--includeDirs=${here}`,
      `--outDir=${out}`,
      ...sources,
    ],
    { stdio: ["ignore", "ignore", "inherit"] },
  );
}
