/** The Helm chart as tests see it: its values files, its committed renderings, and Kubernetes objects in them. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseAllDocuments } from "yaml";
import { packageRoot } from "../../common/package.js";

export const chartDir = join(packageRoot, "helm/glm-relay");
const goldenDir = join(packageRoot, "test/golden/chart");
export const dashboardFile = join(chartDir, "dashboards/glm-relay.json");

export const releaseName = "relay";
export const namespace = "glm";

/** A set of values and what the chart makes of it. */
export interface Rendering {
  name: string;
  valuesFile: string;
  goldenFile: string;
}

const yamlNames = (directory: string) =>
  readdirSync(directory)
    .filter((file) => file.endsWith(".yaml"))
    .map((file) => file.replace(/\.yaml$/, ""))
    .sort();

/** The values files that the chart publishes, then those of the tests. */
export const published = renderings(join(chartDir, "values"));
export const allRenderings = [...published, ...renderings(join(goldenDir, "values"))];

function renderings(directory: string): Rendering[] {
  return yamlNames(directory).map((name) => ({
    name,
    valuesFile: join(directory, `${name}.yaml`),
    goldenFile: join(goldenDir, `${name}.yaml`),
  }));
}

export interface KubernetesObject {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string; labels: Record<string, string> };
  [field: string]: any;
}

/** YAML as Kubernetes reads it: version 1.1, where 0440 is octal. */
export function readManifests(text: string): KubernetesObject[] {
  return parseAllDocuments(text, { version: "1.1" })
    .map((document) => {
      if (document.errors.length > 0) throw document.errors[0];
      return document.toJS({ maxAliasCount: 100 });
    })
    .filter((object) => object !== null);
}

export function readGolden({ goldenFile }: Rendering): KubernetesObject[] {
  return readManifests(readFileSync(goldenFile, "utf8"));
}

/** What stands in a committed rendering for a generated key or password, in base64. */
const generated = Buffer.from("sk-generated").toString("base64");

/** A rendering without what differs each time, and without the dashboard, which is committed as itself. */
export function normalized(text: string): string {
  return text
    .replace(/^( {2}(?:keys|password): )[A-Za-z0-9+/=]+$/gm, `$1${generated}`)
    .replace(/^( {2}glm-relay\.json: \|-\n)(?: {4}.*\n)+/gm, "$1    (dashboards/glm-relay.json)\n");
}

export interface PodTemplate {
  /** Kind and name of the object that makes the pods. */
  owner: string;
  replicas: number;
  object: KubernetesObject;
  metadata: { labels: Record<string, string> };
  spec: any;
}

/** Every object that makes pods, and the pods of tests. */
export function podTemplates(objects: readonly KubernetesObject[]): PodTemplate[] {
  return objects.flatMap((object) => {
    const owner = `${object.kind} ${object.metadata.name}`;
    if (object.kind === "Pod") {
      return [{ owner, replicas: 1, object, metadata: object.metadata, spec: object["spec"] }];
    }
    const template = object["spec"]?.template;
    if (template === undefined) return [];
    return [{ owner, replicas: object["spec"].replicas, object, ...template }];
  });
}

export function matches(selector: Record<string, string>, labels: Record<string, string>): boolean {
  return Object.entries(selector).every(([label, value]) => labels[label] === value);
}
