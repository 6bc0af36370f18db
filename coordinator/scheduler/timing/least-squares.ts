/**
 * Least squares of relative errors with few, never negative coefficients. With three of them every choice of
 * those that are not zero can be tried, which is exact and needs no iteration.
 */
export interface Point {
  /** One value per coefficient, none negative. */
  x: readonly number[];
  y: number;
}

/** A coefficient that explains less of the relative error than this (3 % squared) is noise, and stays zero. */
const leastGain = 1e-3;
/** A pivot below this share of its column: the points do not tell these coefficients apart. */
const leastPivot = 1e-9;
/** Relative errors of smaller values would outweigh all others. */
const leastValue = 1;

/** Sums over all points, columns brought to like size: rows are hundreds where keys are millions. */
interface NormalEquations {
  scales: number[];
  /** x * x, by columns. */
  matrix: number[][];
  /** x * y. */
  right: number[];
  /** y * y. */
  square: number;
}

/** @returns one coefficient per value of x, none negative; none without points. */
export function leastSquares(points: readonly Point[], weights: readonly number[]): number[] {
  const width = points[0]?.x.length ?? 0;
  const equations = normalEquations(points, weights, width);
  let total = 0;
  for (const weight of weights) total += weight;
  let best = new Array<number>(width).fill(0);
  let bestError = equations.square;
  for (const chosen of subsetsOf(width)) {
    const found = solve(equations, chosen);
    if (found === null || found.some((value) => value < 0)) continue;
    const error = squaredError(equations, found);
    if (error > bestError - leastGain * total) continue;
    best = found;
    bestError = error;
  }
  return best.map((value, column) => (value === 0 ? 0 : value / equations.scales[column]!));
}

function normalEquations(
  points: readonly Point[],
  weights: readonly number[],
  width: number,
): NormalEquations {
  const scales = new Array<number>(width).fill(0);
  for (const { x } of points) {
    for (let column = 0; column < width; column++) scales[column] = Math.max(scales[column]!, x[column]!);
  }
  const matrix = scales.map(() => new Array<number>(width).fill(0));
  const right = new Array<number>(width).fill(0);
  let square = 0;
  for (const [index, { x, y }] of points.entries()) {
    const relative = Math.max(y, leastValue);
    const weight = weights[index]! / (relative * relative);
    for (let row = 0; row < width; row++) {
      const weighted = scales[row] === 0 ? 0 : (weight * x[row]!) / scales[row]!;
      right[row]! += weighted * y;
      for (let column = 0; column < width; column++) {
        if (scales[column] !== 0) matrix[row]![column]! += (weighted * x[column]!) / scales[column]!;
      }
    }
    square += weight * y * y;
  }
  return { scales, matrix, right, square };
}

const knownSubsets = new Map<number, number[][]>();

/** Fewer coefficients first, and those in front first: what is simpler wins where points leave a choice. */
function subsetsOf(width: number): number[][] {
  const known = knownSubsets.get(width);
  if (known !== undefined) return known;
  const columns = Array.from({ length: width }, (_, column) => column);
  const all = Array.from({ length: 2 ** width - 1 }, (_, mask) =>
    columns.filter((column) => (((mask + 1) >> column) & 1) === 1),
  );
  all.sort((a, b) => a.length - b.length || a[0]! - b[0]!);
  knownSubsets.set(width, all);
  return all;
}

function squaredError({ matrix, right, square }: NormalEquations, coefficients: readonly number[]): number {
  let error = square;
  for (const [row, value] of coefficients.entries()) {
    error -= 2 * value * right[row]!;
    for (const [column, other] of coefficients.entries()) error += value * matrix[row]![column]! * other;
  }
  return error;
}

/** By elimination, in scaled columns; null when the points do not determine the chosen coefficients. */
function solve({ matrix, right }: NormalEquations, chosen: readonly number[]): number[] | null {
  const system = chosen.map((row) => [...chosen.map((column) => matrix[row]![column]!), right[row]!]);
  for (const [pivot, row] of system.entries()) {
    const diagonal = matrix[chosen[pivot]!]![chosen[pivot]!]!;
    if (!(row[pivot]! > leastPivot * diagonal)) return null;
    for (const [index, other] of system.entries()) {
      if (index === pivot) continue;
      const factor = other[pivot]! / row[pivot]!;
      for (let column = pivot; column < row.length; column++) other[column]! -= factor * row[column]!;
    }
  }
  const found = new Array<number>(right.length).fill(0);
  for (const [index, column] of chosen.entries())
    found[column] = system[index]!.at(-1)! / system[index]![index]!;
  return found;
}
