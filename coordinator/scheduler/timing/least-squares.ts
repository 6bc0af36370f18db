/**
 * Least squares of relative errors with few, never negative coefficients. With three of them every choice of
 * those that are not zero can be tried, which is exact and needs no iteration.
 */
export interface Point {
  /** One value per coefficient. */
  x: readonly number[];
  y: number;
}

/** A coefficient that explains less of the relative error than this (3 % squared) is noise, and stays zero. */
const leastGain = 1e-3;
/** A pivot below this share of its column: the points do not tell these coefficients apart. */
const leastPivot = 1e-9;
/** Relative errors of smaller values would outweigh all others. */
const leastValue = 1;

/** @returns one coefficient per value of x, none negative; all 0 without points. */
export function leastSquares(points: readonly Point[], weights: readonly number[]): number[] {
  const width = points[0]?.x.length ?? 0;
  const relative = points.map(({ x, y }, index) => {
    const weight = Math.sqrt(weights[index]!) / Math.max(y, leastValue);
    return { x: x.map((value) => value * weight), y: y * weight };
  });
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let best = new Array<number>(width).fill(0);
  let bestError = squaredError(relative, best);
  for (const chosen of subsets(width)) {
    const found = solve(relative, chosen, width);
    if (found === null || found.some((value) => value < 0)) continue;
    const error = squaredError(relative, found);
    if (error > bestError - leastGain * total) continue;
    best = found;
    bestError = error;
  }
  return best;
}

/** Fewer coefficients first, and those in front first: what is simpler wins where points leave a choice. */
function subsets(width: number): number[][] {
  const all = Array.from({ length: 2 ** width - 1 }, (_, mask) =>
    Array.from({ length: width }, (_, index) => index).filter((index) => ((mask + 1) >> index) & 1),
  );
  return all.sort((a, b) => a.length - b.length || a[0]! - b[0]!);
}

function squaredError(points: readonly Point[], coefficients: readonly number[]): number {
  let sum = 0;
  for (const { x, y } of points) {
    let error = -y;
    for (let index = 0; index < x.length; index++) error += x[index]! * coefficients[index]!;
    sum += error * error;
  }
  return sum;
}

/** The normal equations by elimination; null when the points do not determine the chosen coefficients. */
function solve(points: readonly Point[], chosen: readonly number[], width: number): number[] | null {
  // Columns of like size: rows are hundreds where keys are millions.
  const scales = chosen.map((column) => Math.max(...points.map(({ x }) => Math.abs(x[column]!))));
  if (scales.some((scale) => !(scale > 0))) return null;
  const system = chosen.map((row, i) => [
    ...chosen.map((column, j) =>
      sumOf(points, ({ x }) => (x[row]! / scales[i]!) * (x[column]! / scales[j]!)),
    ),
    sumOf(points, ({ x, y }) => (x[row]! / scales[i]!) * y),
  ]);
  for (const [pivot, row] of system.entries()) {
    const diagonal = sumOf(points, ({ x }) => (x[chosen[pivot]!]! / scales[pivot]!) ** 2);
    if (row[pivot]! < leastPivot * diagonal) return null;
    for (const [index, other] of system.entries()) {
      if (index === pivot) continue;
      const factor = other[pivot]! / row[pivot]!;
      for (let column = pivot; column < row.length; column++) other[column]! -= factor * row[column]!;
    }
  }
  const found = new Array<number>(width).fill(0);
  for (const [index, column] of chosen.entries()) {
    found[column] = system[index]!.at(-1)! / system[index]![index]! / scales[index]!;
  }
  return found;
}

function sumOf(points: readonly Point[], value: (point: Point) => number): number {
  let sum = 0;
  for (const point of points) sum += value(point);
  return sum;
}
