/**
 * Kubernetes' own OpenAPI schemas, as the npm packages kubernetes-models and @kubernetes-models/prometheus-operator
 * carry them: compiled into functions, which allow fields that the schema does not know. Those are found by watching
 * what the function looks at: it reads every field that it knows, and every key of a map.
 */
import { join } from "node:path";
import { packageRoot } from "../../common/package.js";
import type { KubernetesObject } from "./chart.js";

type Validate = ((data: unknown) => boolean) & {
  errors: { instancePath: string; message?: string }[] | null;
};

/** What is wrong with the object; empty: nothing. */
export async function faultsOf(object: KubernetesObject): Promise<string[]> {
  const { validate } = (await import(/* @vite-ignore */ schemaOf(object))) as { validate: Validate };
  const read = new Map<object, Set<string | symbol>>();
  const valid = validate(watched(object, read));
  const errors = valid ? [] : (validate.errors ?? []).map((each) => `${each.instancePath} ${each.message}`);
  return [...errors, ...unread(object, read).map((path) => `${path} is no field of Kubernetes`)];
}

function schemaOf({ apiVersion, kind }: KubernetesObject): string {
  const [version, group = "core"] = apiVersion.split("/").reverse() as [string, string?];
  const capital = (text: string) => text[0]!.toUpperCase() + text.slice(1);
  if (group === "monitoring.coreos.com") {
    // By its path: the package shows its schemas to itself alone.
    const schemas = join(packageRoot, "node_modules/@kubernetes-models/prometheus-operator/_schemas");
    return `${schemas}/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoring${capital(version)}${kind}.js`;
  }
  return `kubernetes-models/_schemas/IoK8sApi${capital(group.split(".")[0]!)}${capital(version)}${kind}`;
}

/** Reads like the value, and notes for each object in it which keys were asked for. */
function watched<T>(value: T, read: Map<object, Set<string | symbol>>): T {
  if (typeof value !== "object" || value === null) return value;
  const keys = read.get(value) ?? new Set();
  read.set(value, keys);
  return new Proxy(value, {
    get(target, key) {
      keys.add(key);
      return watched(Reflect.get(target, key), read);
    },
  });
}

function unread(value: unknown, read: Map<object, Set<string | symbol>>, path = ""): string[] {
  if (typeof value !== "object" || value === null) return [];
  const keys = read.get(value);
  return Object.entries(value).flatMap(([key, field]) =>
    keys?.has(key) ? unread(field, read, `${path}/${key}`) : [`${path}/${key}`],
  );
}
