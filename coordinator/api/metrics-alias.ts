/**
 * A second name for a metric, as gateways made for vLLM look for. One set of counts feeds both names:
 * the alias renames what its source reports at scrape time, so the two cannot disagree.
 */
import type { Metric, Registry } from "prom-client";

interface Sample {
  value: number;
  labels: Record<string, string | number>;
  metricName?: string;
}

interface Report {
  name: string;
  help: string;
  type: string;
  values: Sample[];
}

export interface Alias {
  name: string;
  source: Metric;
  /** Labels of the alias from those of the source; samples that become equal are added up. */
  labels: (source: Sample["labels"]) => Sample["labels"];
}

export function registerAlias(registry: Registry, alias: Alias): void {
  const sourceName = (alias.source as unknown as { name: string }).name;
  const reporting = alias.source as unknown as { get(): Promise<Report> };
  const metric = {
    name: alias.name,
    async get(): Promise<Report> {
      const report = await reporting.get();
      const samples = new Map<string, Sample>();
      for (const { value, labels, metricName = sourceName } of report.values) {
        // A histogram's samples are name_bucket, name_sum and name_count; `le` is a label of their own.
        const renamed = alias.name + metricName.slice(sourceName.length);
        const le = labels.le;
        const newLabels = { ...alias.labels(labels), ...(le === undefined ? {} : { le }) };
        const key = `${renamed} ${JSON.stringify(newLabels)}`;
        const sum = value + (samples.get(key)?.value ?? 0);
        samples.set(key, { value: sum, labels: newLabels, metricName: renamed });
      }
      return {
        name: alias.name,
        help: `Alias of ${sourceName}.`,
        type: report.type,
        values: [...samples.values()],
      };
    },
    reset() {},
  };
  registry.registerMetric(metric as unknown as Metric);
}
