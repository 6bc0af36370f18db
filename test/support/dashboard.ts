/** The queries of the Grafana dashboard, read with Prometheus' own grammar. */
import { readFileSync } from "node:fs";
import type { SyntaxNode } from "@lezer/common";
import { parser } from "@prometheus-io/lezer-promql";
import { dashboardFile } from "./chart.js";

export interface Selector {
  metric: string;
  /** Labels that it asks for, with the whole matcher. */
  matchers: Map<string, string>;
  /** Of the function around it, for ranges: rate, increase; null for the latest value. */
  range: string | null;
}

export interface Query {
  panel: string;
  expr: string;
  legend: string;
  selectors: Selector[];
  /** Labels that the outermost aggregation keeps. */
  by: string[];
  /** Labels named by any aggregation or `on`. */
  grouped: string[];
}

interface Target {
  expr: string;
  legendFormat: string;
}

/** @throws Error for a query that is not PromQL. */
export function dashboardQueries(): Query[] {
  const { panels } = JSON.parse(readFileSync(dashboardFile, "utf8")) as {
    panels: { title: string; targets?: Target[] }[];
  };
  return panels.flatMap(({ title, targets = [] }) =>
    targets.map(({ expr, legendFormat }) => ({ panel: title, legend: legendFormat, ...readQuery(expr) })),
  );
}

export function readQuery(expr: string): Omit<Query, "panel" | "legend"> {
  const text = expr.replaceAll("$__rate_interval", "5m");
  const selectors: Selector[] = [];
  const grouped: string[] = [];
  let by: string[] | null = null;
  const textOf = (node: SyntaxNode) => text.slice(node.from, node.to);
  parser.parse(text).iterate({
    enter(reference) {
      const { node } = reference;
      if (node.type.isError) throw new Error(`no PromQL at ${node.from}: ${text}`);
      if (node.name === "GroupingLabels") {
        const labels = node.getChildren("LabelName").map(textOf);
        grouped.push(...labels);
        if (node.parent?.name === "AggregateModifier") by ??= labels;
      }
      if (node.name === "VectorSelector") selectors.push(selectorOf(node, textOf));
    },
  });
  return { expr, selectors, by: by ?? [], grouped };
}

function selectorOf(node: SyntaxNode, textOf: (node: SyntaxNode) => string): Selector {
  const matchers = new Map<string, string>();
  for (const matcher of node.getChild("LabelMatchers")?.getChildren("UnquotedLabelMatcher") ?? []) {
    matchers.set(textOf(matcher.getChild("LabelName")!), textOf(matcher));
  }
  let range: string | null = null;
  if (node.parent?.name === "MatrixSelector") {
    let call = node.parent;
    while (call.name !== "FunctionCall" && call.parent !== null) call = call.parent;
    range = textOf(call.getChild("FunctionIdentifier")!);
  }
  return { metric: textOf(node.getChild("Identifier")!), matchers, range };
}
