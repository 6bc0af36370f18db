/** deploy/compose.yaml as far as tests look at it: services with the variables that Compose would put in. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { packageRoot } from "../../common/package.js";

export const composeFile = join(packageRoot, "deploy/compose.yaml");

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
export function readCompose(env: Record<string, string> = {}): ComposeFile {
  const text = readFileSync(composeFile, "utf8").replace(
    /\$\{(\w+)(?::-([^}]*))?\}/g,
    (_, name: string, fallback = "") => env[name] ?? fallback,
  );
  return parse(text, { merge: true });
}
