/**
 * Measured times of a real stage (bench stage-profile) in place of data sheets. Between measured points a time is
 * interpolated, and beyond the last one it goes on like its last piece.
 */
import type { LayerRange } from "../../coordinator/placement/cut.js";
import { wrong } from "./hardware.js";
import type { SimulatedModel } from "./model-work.js";
import { StageWork } from "./stage-work.js";
import { keyPairsOf, type SequencePart, type StepWork } from "./step-work.js";
import type { StageTimer, StepCost } from "./timing.js";

export const profileFormat = "glm-relay stage profile 2";

/** x ascending; y in ms. */
export interface Curve {
  x: number[];
  y: number[];
}

export interface StageProfile {
  format: typeof profileFormat;
  /** What was measured, for people: model, precision, processor, threads. */
  what: string;
  /** Layers of the model that was measured: other models take other times. */
  model: { hiddenSize: number; ffnSize: number; layerCount: number };
  /** A layer by the rows of a step, each of which sees few keys. */
  layer: Curve;
  /** What a row and layer take besides, by the keys that the row sees: alone in its sequence, and in a chunk. */
  decodeKeys: Curve;
  chunkKeys: Curve;
  /** Norm, head and sampling by the rows that are sampled. */
  head: Curve;
  /** Bytes per second that stages which compute at the same time read together, at most. */
  sharedBandwidth: number;
  /** Times that a step of many rows takes while others compute as well: those of one alone. */
  crowding: number;
  /** Compute threads of the stage that was measured, and cores of the machine. */
  threads: number;
  cores: number;
}

/** @throws RelayError invalid_configuration naming field, value and what was expected. */
export function readProfile(value: unknown): StageProfile {
  const profile = value as StageProfile;
  if (typeof value !== "object" || value === null || profile.format !== profileFormat) {
    throw wrong("the profile's format", shown((value as StageProfile | null)?.format), profileFormat);
  }
  for (const name of ["layer", "decodeKeys", "chunkKeys", "head"] as const) requireCurve(profile[name], name);
  for (const name of ["sharedBandwidth", "crowding", "threads", "cores"] as const) {
    if (!isAtLeast(1, profile[name]))
      throw wrong(`the profile's ${name}`, shown(profile[name]), "a number of at least 1");
  }
  const { hiddenSize, ffnSize, layerCount } = profile.model ?? {};
  requireNumbers([hiddenSize, ffnSize, layerCount], "model", 1);
  return profile;
}

/** @throws RelayError invalid_configuration for the profile of a model of another width. */
export function requireProfileOf(
  { model, what }: StageProfile,
  shape: { hiddenSize: number; ffnSize: number },
): void {
  for (const field of ["hiddenSize", "ffnSize"] as const) {
    if (model[field] === shape[field]) continue;
    throw wrong(`the profile's ${field} (${what})`, String(model[field]), `the model's ${shape[field]}`);
  }
}

export class ProfileTimer implements StageTimer {
  readonly #profile: StageProfile;
  readonly #work: StageWork;
  readonly #layerCount: number;

  constructor(profile: StageProfile, layers: LayerRange, model: SimulatedModel) {
    this.#profile = profile;
    this.#work = new StageWork(model, layers);
    this.#layerCount = layers.layerEnd - layers.layerBegin;
  }

  cost(work: StepWork): StepCost {
    const { head, sharedBandwidth, crowding, threads, cores } = this.#profile;
    let ms = this.#layerCount * this.#layerMs(work.parts, work.rows);
    const sampled = this.#work.sampled(work);
    if (sampled > 0) ms += interpolated(head, sampled);
    const { slice } = work;
    if (slice !== null) ms += this.#work.sliceLayers(slice) * this.#layerMs([slice], slice.rows);
    let all = 0;
    this.#work.each(work, (bytes, _, count) => {
      all += count * bytes;
    });
    const memory = ms > 0 ? (1_000 * all) / ms / sharedBandwidth : 0;
    return { ms, share: { memory, arithmetic: threads / cores, crowding } };
  }

  #layerMs(parts: readonly SequencePart[], rows: number): number {
    if (rows === 0) return 0;
    const { layer, decodeKeys, chunkKeys } = this.#profile;
    let ms = interpolated(layer, rows);
    for (const part of parts) {
      const keys = keyPairsOf(part) / part.rows;
      // A chunk's own keys are in the time of its rows.
      const more = part.rows === 1 ? interpolated(decodeKeys, keys) : chunkMs(chunkKeys, keys, part.rows);
      ms += part.rows * more;
    }
    return ms;
  }
}

const chunkMs = (curve: Curve, keys: number, rows: number): number =>
  Math.max(0, interpolated(curve, keys) - interpolated(curve, (rows + 1) / 2));

/** @returns not below 0. */
export function interpolated({ x, y }: Curve, at: number): number {
  if (x.length === 1) return y[0]!;
  let piece = 1;
  while (piece < x.length - 1 && x[piece]! < at) piece++;
  const [x0, x1, y0, y1] = [x[piece - 1]!, x[piece]!, y[piece - 1]!, y[piece]!];
  // In front of the first point nothing is known but that it is not more.
  if (at <= x[0]!) return y[0]!;
  return Math.max(0, y0 + ((y1 - y0) * (at - x0)) / (x1 - x0));
}

function requireCurve(curve: Curve | undefined, field: string): void {
  requireNumbers(curve?.x, `${field}.x`, 0);
  requireNumbers(curve?.y, `${field}.y`, 0);
  const { x, y } = curve!;
  if (x.length !== y.length)
    throw wrong(`${field}.y`, `${y.length} numbers`, `as many as ${field}.x, ${x.length}`);
  if (x.some((value, index) => index > 0 && value <= x[index - 1]!))
    throw wrong(`${field}.x`, shown(x), "ascending numbers");
}

/** Points that one curve may have. */
const pointsMax = 1_000;

function requireNumbers(values: unknown, field: string, least: number): void {
  const good = (value: unknown) => isAtLeast(least, value);
  if (Array.isArray(values) && values.length >= 1 && values.length <= pointsMax && values.every(good)) return;
  throw wrong(`the profile's ${field}`, shown(values), `1 to ${pointsMax} numbers of at least ${least}`);
}

const isAtLeast = (least: number, value: unknown): boolean =>
  typeof value === "number" && Number.isFinite(value) && value >= least;

const shown = (value: unknown): string =>
  value === undefined ? "missing" : JSON.stringify(value).slice(0, 60);
