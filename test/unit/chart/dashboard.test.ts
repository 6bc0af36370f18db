/** The dashboard asks for metrics that the code serves (docs/metrics.md, which another test holds against it). */
import { readFileSync } from "node:fs";
import { collectDefaultMetrics, Registry } from "prom-client";
import { expect, test } from "vitest";
import { dashboardFile } from "../../support/chart.js";
import { dashboardQueries, readQuery, type Selector } from "../../support/dashboard.js";
import { type MetricFacts, readDocumented } from "../../support/metrics-page.js";

const coordinator = readDocumented(["Coordinator"], []);
const worker = readDocumented(["Worker"], []);
const queries = dashboardQueries();
/** What Prometheus adds when it scrapes. */
const targetLabels = ["job", "instance"];

async function ofProcesses(): Promise<Map<string, MetricFacts>> {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const metrics = await registry.getMetricsAsJSON();
  return new Map(metrics.map(({ name, type }) => [name, { type: String(type), labels: [], buckets: [] }]));
}

/** The metric behind a selector on one kind of page, if it is there; of a histogram by its parts. */
function factsOf({ metric }: Selector, page: Map<string, MetricFacts>): MetricFacts | undefined {
  const [, base, part] = /^(.*)_(bucket|sum|count)$/.exec(metric) ?? [];
  const histogram = base === undefined ? undefined : page.get(base);
  if (histogram?.type !== "histogram") return page.get(metric);
  return {
    ...histogram,
    type: "counter",
    labels: [...histogram.labels, ...(part === "bucket" ? ["le"] : [])],
  };
}

test.each(queries.map((query) => [`${query.panel}: ${query.expr}`, query] as const))(
  "%s",
  async (_, query) => {
    const processes = await ofProcesses();
    const labels = new Set(targetLabels);
    for (const selector of query.selectors) {
      const pages = [coordinator, worker, processes].map((page) => factsOf(selector, page));
      const facts = pages.filter((each) => each !== undefined);
      expect(facts, `${selector.metric} is served by nobody`).not.toEqual([]);
      const asked = [...selector.matchers.keys()].filter((label) => !targetLabels.includes(label));
      const serving = facts.filter((each) => asked.every((label) => each.labels.includes(label)));
      expect(serving.length, `${selector.metric} has no labels ${asked}`).toBeGreaterThan(0);
      // On both pages: a sum over the jobs would count it twice. `model` does not tell them apart, as .* matches nothing.
      if (facts.length === 2 && selector.metric !== "glm_relay_build_info") {
        expect([...selector.matchers.values()]).toContain('pipeline!=""');
      }
      for (const { type, labels: known } of serving) {
        expect(selector.range === null ? "gauge" : "counter", `${selector.metric} is a ${type}`).toBe(type);
        for (const label of known) labels.add(label);
      }
    }
    for (const label of query.grouped) expect([...labels], query.expr).toContain(label);
    for (const [, label] of query.legend.matchAll(/\{\{(\w+)\}\}/g)) {
      expect(label === "le" ? ["le"] : query.by, query.legend).toContain(label);
    }
  },
);

test("the check of queries notices a wrong name, a wrong label and what is no PromQL", () => {
  expect(() => readQuery("sum(rate(x_total[5m])")).toThrow(/no PromQL/);
  const { selectors, by } = readQuery('sum by (a) (rate(x_total{b="c"}[$__rate_interval])) / y');
  expect(selectors.map(({ metric, range }) => [metric, range])).toEqual([
    ["x_total", "rate"],
    ["y", null],
  ]);
  expect([...selectors[0]!.matchers]).toEqual([["b", 'b="c"']]);
  expect(by).toEqual(["a"]);
  expect(factsOf(selectors[0]!, coordinator)).toBeUndefined();
});

test("panels have ids and places of their own, and an honest title", () => {
  const { panels, uid } = JSON.parse(readFileSync(dashboardFile, "utf8"));
  expect(uid).toBe("glm-relay");
  expect(new Set(panels.map(({ id }: any) => id)).size).toBe(panels.length);
  const taken = new Set<string>();
  for (const { gridPos, title, type, targets = [] } of panels) {
    expect(title).not.toBe("");
    expect(type === "row" ? 0 : targets.length, title).toBe(targets.length);
    for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
      for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
        expect(taken.has(`${x},${y}`), `${title} covers another panel`).toBe(false);
        taken.add(`${x},${y}`);
      }
    }
  }
});
