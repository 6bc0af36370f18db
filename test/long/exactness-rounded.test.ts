import { describe } from "vitest";
import { type PrecisionName, precisions } from "../support/exactness.js";
import { exactnessPairs } from "../support/exactness-matrix.js";

const rounded = (Object.keys(precisions) as PrecisionName[]).filter((name) => /int/i.test(name));

describe.each(rounded.map((name, turn) => [name, turn] as const))("exactness of %s", (name, turn) =>
  exactnessPairs(name, turn),
);
