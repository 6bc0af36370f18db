/** How many seeds the fault simulator needs for a planted bug, and by which invariant it finds it. */
import { runSeed } from "../../simulation/chaos/run.js";
import type { PlantedBug } from "./planted-bugs.js";

export interface Found {
  bug: string;
  /** null: not among so many. */
  seeds: number | null;
  invariant: string;
}

/** Seeds from 1 on, until one finds it. */
export async function findPlanted({ name, plant }: PlantedBug, mostSeeds: number): Promise<Found> {
  const undo = plant();
  try {
    for (let seed = 1; seed <= mostSeeds; seed++) {
      const { violation } = await runSeed(seed);
      if (violation !== null) return { bug: name, seeds: seed, invariant: violation.invariant };
    }
  } finally {
    undo();
  }
  return { bug: name, seeds: null, invariant: "" };
}

/** A line per bug. */
export function tableOf(found: readonly Found[]): string {
  const width = Math.max(...found.map(({ bug }) => bug.length));
  return found
    .map(({ bug, seeds, invariant }) => {
      return `${bug.padEnd(width)}  ${(seeds === null ? "not found" : `${seeds}`).padStart(9)}  ${invariant}`;
    })
    .join("\n");
}
