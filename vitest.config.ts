import { defineConfig } from "vitest/config";

/** The fast suite: `make test`. What takes minutes lives in test/long and runs with `make test-long`. */
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    exclude: ["test/long/**"],
    pool: "forks",
    // Tests of processes wait half of their time: three files at once keep two cores busy.
    maxWorkers: 3,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
