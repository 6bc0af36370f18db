/**
 * The real Helm: the one on the PATH, or one that Go builds from its sources into build/tools, once. Without either
 * there is a reason, which tests print when they skip.
 */
import { execFile, execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { packageRoot } from "../../common/package.js";
import { chartDir, namespace, releaseName } from "./chart.js";

const helmVersion = "v3.19.0";
const tools = join(packageRoot, "build/tools");
/** A cold build on two busy cores. */
const buildLimitMs = 20 * 60_000;
/** Without a cluster Helm assumes one; a Helm that Go built assumes 1.20. */
export const kubeVersion = "1.34.0";

export function findHelm(): { path: string } | { missing: string } {
  const onPath = spawnSync("helm", ["version", "--short"], { encoding: "utf8" });
  if (onPath.status === 0 && onPath.stdout.startsWith("v3")) return { path: "helm" };
  const built = join(tools, "helm");
  if (existsSync(built)) return { path: built };
  if (spawnSync("go", ["version"]).status !== 0) return { missing: "neither helm 3 nor go is on the PATH" };
  mkdirSync(tools, { recursive: true });
  const build = spawnSync("go", ["install", `helm.sh/helm/v3/cmd/helm@${helmVersion}`], {
    env: { ...process.env, GOBIN: tools },
    encoding: "utf8",
    timeout: buildLimitMs,
  });
  if (build.status === 0) return { path: built };
  const reason = build.error?.message ?? build.stderr.trim().split("\n").at(-1);
  return { missing: `go could not build helm ${helmVersion}: ${reason}` };
}

/** @throws Error with what Helm printed, when it fails. */
export function helm(path: string, args: readonly string[], env: Record<string, string> = {}): string {
  try {
    return execFileSync(path, args, {
      encoding: "utf8",
      maxBuffer: 64 * 2 ** 20,
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
    });
  } catch (error) {
    throw new Error(`helm ${args[0]}: ${(error as { stderr: string }).stderr}`, { cause: error });
  }
}

export function template(path: string, ...args: string[]): string {
  const common = ["--namespace", namespace, "--kube-version", kubeVersion, "--set", "insecureWorkers=true"];
  return helm(path, ["template", releaseName, chartDir, ...common, ...args]);
}

/** The same without blocking: for a Helm that talks to a server in this process. */
export async function helmLater(path: string, args: readonly string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(path, [...args], {
    encoding: "utf8",
    maxBuffer: 64 * 2 ** 20,
  });
  return stdout;
}
