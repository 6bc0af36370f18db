/** deploy/compose.yaml and what is laid over it, as far as tests look at them, with the variables put in. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { packageRoot } from "../../common/package.js";

export const composeFile = join(packageRoot, "deploy/compose.yaml");
export const gpuComposeFile = join(packageRoot, "deploy/compose.cuda.yaml");

export interface ComposeService {
  image: string;
  command?: string[];
  environment?: Record<string, string>;
  networks: string[];
  ports?: string[];
  volumes?: string[];
  healthcheck?: { test: string[] };
  [field: string]: any;
}

export interface ComposeFile {
  services: Record<string, ComposeService>;
  networks: Record<string, { internal?: boolean }>;
  volumes: Record<string, unknown>;
}

/** With ${NAME:-default} replaced, as Compose does it, and `<<` merged. */
export function readCompose(env: Record<string, string> = {}, file = composeFile): ComposeFile {
  const text = readFileSync(file, "utf8").replace(
    /\$\{(\w+)(?::-([^}]*))?\}/g,
    (_, name: string, fallback = "") => env[name] ?? fallback,
  );
  return parse(text, { merge: true });
}

/** Services of both files: of a field that both have, maps are merged, and anything else is the second's. */
export function readGpuCompose(env: Record<string, string> = {}): ComposeFile {
  return merged(readCompose(env), readCompose(env, gpuComposeFile)) as ComposeFile;
}

function merged(base: unknown, over: unknown): unknown {
  if (!isMap(base) || !isMap(over)) return over ?? base;
  const keys = new Set([...Object.keys(base), ...Object.keys(over)]);
  return Object.fromEntries([...keys].map((key) => [key, merged(base[key], over[key])]));
}

function isMap(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
