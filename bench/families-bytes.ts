/**
 * What every published model needs: its parameters and the bytes of all its weights in the engine's memory,
 * as placement plans them, beside the same by formula (reference.ts). No weight is written or read.
 *
 * The formula counts the authors' scheme, so the bytes differ, and a difference has three parts. The head:
 * ours is int8 when layers are rounded, has no rows for ids that do not exist, and is held a second time
 * where it is the embedding. The scales: ours belong to 32 weights, not to a row. Norms and biases: ours are
 * float32.
 */

import { paperModel } from "../checkpoint/paper-model.js";
import { engineRows, placementModel } from "../coordinator/placement/model.js";
import type { PlacementModel } from "../coordinator/placement/placement.js";
import { type PublishedName, published } from "../models/published.js";
import type { Quantization, WeightFormat } from "../models/quantization.js";
import { facts, modelCounts, table } from "./reference.js";
import type { Table } from "./report.js";

const format = (type: WeightFormat["type"], groupSize: number): WeightFormat => ({
  type,
  groupSize,
  scales: "search",
});

/** What `--quantization` and `--group-size` make of a model; the head is then int8. */
const schemes = {
  stored: { weights: null, head: null },
  int8: { weights: format("int8", 32), head: format("int8", 32) },
  int4: { weights: format("int4", 32), head: format("int8", 32) },
  "int4 row": { weights: format("int4", 0), head: format("int8", 0) },
} as const satisfies Record<string, Quantization>;
export type Scheme = keyof typeof schemes;
export const schemeNames = Object.keys(schemes) as Scheme[];

/** The formula's column of each scheme. */
const formulaOf = { stored: "fp16", int8: "int8", int4: "int4", "int4 row": "int4" } as const;

export interface SchemeBytes {
  ours: number;
  formula: number;
  /** ours - formula; these three are all of it. */
  head: number;
  scales: number;
  vectors: number;
}

export interface FamilyBytes {
  name: PublishedName;
  title: string;
  /** By the card. */
  parameters: number;
  /** As published. */
  expectedParameters: number;
  /** Bytes of a checkpoint in its own type. */
  file: number;
  schemes: Record<Scheme, SchemeBytes>;
}

export function familyBytes(name: PublishedName): FamilyBytes {
  const model = paperModel(published[name]);
  const counts = modelCounts(facts[name]);
  const { layers } = counts;
  const { hidden, vocab, tied, norm } = facts[name];
  const scaleBytes = { fp16: 0, int8: 2 * layers.rows, int4: counts.int4 - int4WithoutScales(counts) };
  const weightBytes = { fp16: 2 * layers.linear, int8: layers.linear, int4: layers.linear / 2 };
  const finalNorm = (norm === "layer" ? 2 : 1) * hidden;
  const entries = schemeNames.map((scheme): [Scheme, SchemeBytes] => {
    const precision = { dtype: model.dtype, kvType: model.dtype, ...schemes[scheme] };
    const plan = placementModel(model, precision, engineRows(model));
    const column = formulaOf[scheme];
    const ours = totalBytes(plan);
    // Both count embedding and router as stored. Placement gives norms and biases four bytes.
    const vectors = 2 * (layers.vectors + finalNorm);
    const head = plan.headBytes - 4 * finalNorm - (tied ? 0 : 2 * vocab * hidden);
    const layersOfPlan = plan.layerBytes.reduce((sum, bytes) => sum + bytes, 0);
    const scales =
      layersOfPlan - weightBytes[column] - 2 * layers.router - 4 * layers.vectors - scaleBytes[column];
    return [scheme, { ours, formula: counts[column], head, scales, vectors }];
  });
  return {
    name,
    title: published[name].title,
    parameters: model.parameterCount,
    expectedParameters: table[name].parameters,
    file: [...model.tensors.values()].reduce((sum, { byteLength }) => sum + byteLength, 0),
    schemes: Object.fromEntries(entries) as Record<Scheme, SchemeBytes>,
  };
}

function int4WithoutScales({ fp16, layers }: { fp16: number; layers: { linear: number } }): number {
  return fp16 - 2 * layers.linear + layers.linear / 2;
}

/** All weights, as if one stage held them. */
function totalBytes({ layerBytes, embeddingBytes, headBytes }: PlacementModel): number {
  return layerBytes.reduce((sum, bytes) => sum + bytes, embeddingBytes + headBytes);
}

export function bytesTables(families: readonly FamilyBytes[]): Table[] {
  const bytes = families.map(({ name, title, schemes: s }) => [
    facts[name].int4Group === undefined ? title : `${title} (*)`,
    gigabytes(s.stored.ours),
    gigabytes(s.stored.formula),
    gigabytes(s.int8.ours),
    gigabytes(s.int8.formula),
    gigabytes(s.int4.ours),
    gigabytes(s["int4 row"].ours),
    gigabytes(s.int4.formula),
  ]);
  const differences = families.map(({ title, schemes }) => [
    title,
    ...schemeNames.map((scheme) => {
      const { head, scales, vectors } = schemes[scheme];
      return [head, scales, vectors].map(signed).join(" / ");
    }),
  ]);
  return [
    {
      title: "Parameters, by the cards and as published",
      head: ["", "by the card", "published", "difference"],
      rows: families.map(({ title, parameters, expectedParameters }) => [
        title,
        whole(parameters),
        whole(expectedParameters),
        whole(parameters - expectedParameters),
      ]),
    },
    {
      title:
        "Weights in memory (GB = 10^9 bytes), as planned and by the formula of the authors' scheme\n" +
        "(*) the formula's INT4 has a scale per 128 weights instead of per row",
      head: ["", "stored", "FP16, formula", "int8", "INT8, formula", "int4", "int4 row", "INT4, formula"],
      rows: bytes,
    },
    {
      title: "The difference to the formula (GB): head / scales / norms and biases in float32",
      head: ["", ...schemeNames],
      rows: differences,
    },
  ];
}

const whole = (count: number): string => count.toLocaleString("en-US");
const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(2);
function signed(bytes: number): string {
  const text = gigabytes(Math.abs(bytes));
  return text === "0.00" ? "0" : `${bytes < 0 ? "-" : "+"}${text}`;
}
