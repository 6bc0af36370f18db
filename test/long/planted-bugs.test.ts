import { expect, it } from "vitest";
import { type Found, findPlanted, tableOf } from "../support/find-planted.js";
import { plantedBugs } from "../support/planted-bugs.js";

const mostSeeds = 1_000;

it("finds every planted bug within a thousand seeds", async () => {
  const found: Found[] = [];
  for (const bug of plantedBugs) found.push(await findPlanted(bug, mostSeeds));
  console.log(tableOf(found));
  expect(found.filter(({ seeds }) => seeds === null)).toEqual([]);
});
