/** Prometheus' text format, and the tables of docs/metrics.md, in one form that can be compared. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { packageRoot } from "../../common/package.js";

export interface MetricFacts {
  type: string;
  /** Sorted; without `le`. */
  labels: string[];
  /** Upper bounds of a histogram, without infinity; empty for other types. */
  buckets: number[];
}

/** Every metric on a page but prom-client's own. A metric without a sample has no labels here. */
export function readPage(page: string): Map<string, MetricFacts & { samples: number }> {
  const metrics = new Map<
    string,
    { type: string; labels: Set<string>; buckets: Set<number>; samples: number }
  >();
  for (const [, name, type] of page.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
    metrics.set(name!, { type: type!, labels: new Set(), buckets: new Set(), samples: 0 });
  }
  for (const [, sample, labels = ""] of page.matchAll(/^([a-z0-9_:]+)(?:\{(.*)\})? \S+$/gm)) {
    const metric = metrics.get(sample!) ?? metrics.get(sample!.replace(/_(bucket|sum|count)$/, ""));
    if (metric === undefined) throw new Error(`a sample without a TYPE line: ${sample}`);
    metric.samples++;
    for (const [, label, value] of labels.matchAll(/(\w+)="([^"]*)"/g)) {
      if (label !== "le") metric.labels.add(label!);
      else if (value !== "+Inf") metric.buckets.add(Number(value));
    }
  }
  return new Map(
    [...metrics]
      .filter(([name]) => !/^(nodejs|process)_/.test(name))
      .map(([name, { type, labels, buckets, samples }]) => [
        name,
        { type, labels: [...labels].sort(), buckets: [...buckets], samples },
      ]),
  );
}

/**
 * The tables under the given headings.
 * @param lengthBuckets What N stands for: it depends on the model's context.
 */
export function readDocumented(headings: string[], lengthBuckets: number[]): Map<string, MetricFacts> {
  const text = readFileSync(join(packageRoot, "docs/metrics.md"), "utf8");
  const buckets = new Map<string, number[]>([["N", lengthBuckets]]);
  for (const [, set, bounds] of text.matchAll(/^- ([TIES]): ([\d. ]+)$/gm)) {
    buckets.set(set!, bounds!.split(" ").map(Number));
  }
  const metrics = new Map<string, MetricFacts>();
  for (const heading of headings) {
    const section = text.split(`\n## ${heading}\n`)[1]?.split("\n## ")[0];
    if (section === undefined) throw new Error(`docs/metrics.md has no section ${heading}`);
    for (const row of section.split("\n").filter((line) => line.startsWith("| `"))) {
      const [name, type, labels] = row
        .split("|")
        .slice(1)
        .map((cell) => cell.trim());
      const [kind, set] = type!.split(" ");
      if (metrics.has(name!)) throw new Error(`docs/metrics.md has ${name} twice under ${heading}`);
      metrics.set(name!.replaceAll("`", ""), {
        type: kind!,
        labels: [...labels!.matchAll(/`(\w+)`/g)].map(([, label]) => label!).sort(),
        buckets: set === undefined ? [] : (buckets.get(set) ?? []),
      });
    }
  }
  return metrics;
}
