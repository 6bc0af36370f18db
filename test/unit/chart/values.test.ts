/** The chart's values: each is documented, and the schema takes those that are published and refuses the rest. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Ajv } from "ajv";
import { describe, expect, test } from "vitest";
import { isMap, parse, parseDocument } from "yaml";
import { allRenderings, chartDir } from "../../support/chart.js";

const schema = JSON.parse(readFileSync(join(chartDir, "values.schema.json"), "utf8"));
const valuesText = readFileSync(join(chartDir, "values.yaml"), "utf8");
const defaults = parse(valuesText);
const validate = new Ajv({ allErrors: true, allowUnionTypes: true }).compile(schema);

/** As Helm does: maps are merged, everything else is replaced. */
function merged(base: any, over: any): any {
  if (!isObject(base) || !isObject(over)) return over === undefined ? base : over;
  const keys = new Set([...Object.keys(base), ...Object.keys(over)]);
  return Object.fromEntries([...keys].map((key) => [key, merged(base[key], over[key])]));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** "worker.count=3" as values. */
function setting(text: string): unknown {
  const [path, value] = text.split("=") as [string, string];
  return path.split(".").reduceRight<unknown>((inner, key) => ({ [key]: inner }), parse(value));
}

function faults(values: unknown): string[] {
  validate(values);
  return (validate.errors ?? []).map(
    ({ instancePath, message, params }) => `${instancePath} ${message} ${JSON.stringify(params)}`,
  );
}

test("the defaults fit the schema", () => {
  expect(faults(defaults)).toEqual([]);
});

test.each(allRenderings.map(({ name, valuesFile }) => [name, valuesFile]))(
  "the values file %s fits the schema",
  (_, file) => {
    expect(faults(merged(defaults, parse(readFileSync(file, "utf8"))))).toEqual([]);
  },
);

describe("the schema", () => {
  test.each([
    ["coordinator.replicas=2", "/coordinator/replicas must be <= 1"],
    ["coordinator.replicas=0", "/coordinator/replicas must be >= 1"],
    ["worker.count=2", "must NOT have additional properties"],
    ["model.path=/model", "/model must NOT have additional properties"],
    ["workers.gpu.name=x", "/workers/gpu must NOT have additional properties"],
    ["workers.gpu.count=2", "/workers/gpu/count must be <= 1"],
    ["workers.device=gpu", "/workers/device must match pattern"],
    ["workers.image.tag=latest", "/workers/image/tag must NOT be valid"],
    ["workers.count=0", "/workers/count must be >= 1"],
    ["workers.count=four", "/workers/count must be integer"],
    ["workers.gpu.resource=gpu", "/workers/gpu/resource must match pattern"],
    ["workers.extraArgs=[gpu]", "/workers/extraArgs/0 must match pattern"],
    ["workers.resources.limits.memory=8 GB", "/workers/resources/limits/memory must match pattern"],
    ["image.tag=latest", "/image/tag must NOT be valid"],
    ["image.digest=sha256:12", "/image/digest must match pattern"],
    ["image.repository=glm-relay:1", "/image/repository must match pattern"],
    ["model.source=claim", "/model/claim must NOT have fewer than 1 characters"],
    ["model.source=hostPath", "/model/hostPath must NOT have fewer than 1 characters"],
    ["model.sizeGB=0", "/model/sizeGB must be > 0"],
    ["model.quantization=fp8", "/model/quantization must be equal to one of the allowed values"],
    ["pipeline.layers=0..17", "/pipeline/layers must match pattern"],
    ["startup.readMBps=0", "/startup/readMBps must be > 0"],
    ["redis.url=redis://:secret@redis", "/redis/url must match pattern"],
    ["redis.image.tag=latest", "/redis/image/tag must NOT be valid"],
    ["redis.appendfsync=no", "/redis/appendfsync must be equal to one of the allowed values"],
    ["metrics.interval=1", "/metrics/interval must be string"],
    ["insecureWorkers=yes please", "/insecureWorkers must be boolean"],
  ])("refuses %s", (text, message) => {
    expect(faults(merged(defaults, setting(text))).join("\n")).toContain(message);
  });

  test("refuses an unknown key in every map whose keys are ours", () => {
    const missing: string[] = [];
    const walk = (part: any, path: string) => {
      if (part.type !== "object" || part.properties === undefined) return;
      if (part.additionalProperties !== false) missing.push(path);
      for (const [key, child] of Object.entries(part.properties)) walk(child, `${path}/${key}`);
    };
    walk(schema, "");
    expect(missing).toEqual([]);
  });

  test("knows the values of values.yaml and no others", () => {
    const paths = (properties: any, path = ""): string[] =>
      Object.entries<any>(properties).flatMap(([key, { properties: inner }]) =>
        inner ? paths(inner, `${path}${key}.`) : [`${path}${key}`],
      );
    expect(paths(schema.properties).sort()).toEqual([...leaves(), "global"].sort());
  });
});

/** Paths of all values that are no maps of ours. */
function leaves(of: any = defaults, known: any = schema.properties, path = ""): string[] {
  return Object.entries<any>(of).flatMap(([key, value]) => {
    const inner = known[key]?.properties;
    return inner ? leaves(value, inner, `${path}${key}.`) : [`${path}${key}`];
  });
}

test("every value is documented where it stands", () => {
  const missing: string[] = [];
  const walk = (map: any, known: any, path: string, before: string | null) => {
    for (const [index, { key, value }] of map.items.entries()) {
      const inner = known[key.value]?.properties;
      // The comment in front of a map's first key belongs to the map's node.
      const comment = key.commentBefore ?? (index === 0 ? before : null);
      if (inner && isMap(value)) walk(value, inner, `${path}${key.value}.`, value.commentBefore ?? null);
      else if (!comment?.includes("-- ")) missing.push(`${path}${key.value}`);
    }
  };
  const document = parseDocument(valuesText);
  walk(document.contents, schema.properties, "", document.commentBefore);
  // Documented as a whole, by the comment on `image`.
  expect(missing.filter((path) => !path.startsWith("redis.image."))).toEqual([]);
});
