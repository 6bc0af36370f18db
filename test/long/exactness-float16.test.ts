import { describe } from "vitest";
import { exactnessMatrix } from "../support/exactness-matrix.js";

describe("the full matrix of exactness in float16", () => exactnessMatrix("float16"));
