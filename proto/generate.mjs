// Generates TypeScript types from the .proto files with proto-loader's own generator and the
// options that proto/load.ts and proto/public.ts use at run time, so types and objects agree.
import { execFileSync } from "node:child_process";
import { existsSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "generated");
const files = [
  { name: "internal", options: ["--longs=Number"] },
  { name: "public", options: ["--longs=String", "--keepCase"] },
];
const source = ({ name }) => join(here, `${name}.proto`);
const stamp = ({ name }) => join(out, `${name}.ts`);

const newest = Math.max(
  ...[...files.map(source), fileURLToPath(import.meta.url)].map((file) => statSync(file).mtimeMs),
);
if (files.some((file) => !existsSync(stamp(file)) || statSync(stamp(file)).mtimeMs < newest)) {
  rmSync(out, { recursive: true, force: true });
  const loader = dirname(createRequire(import.meta.url).resolve("@grpc/proto-loader/package.json"));
  for (const file of files) {
    execFileSync(
      process.execPath,
      [
        join(loader, "build/bin/proto-loader-gen-types.js"),
        ...file.options,
        "--enums=String",
        "--defaults",
        "--arrays",
        "--oneofs",
        "--grpcLib=@grpc/grpc-js",
        "--importFileExtension=.js",
        `--includeDirs=${here}`,
        `--outDir=${out}`,
        source(file),
      ],
      { stdio: ["ignore", "ignore", "inherit"] },
    );
  }
}
