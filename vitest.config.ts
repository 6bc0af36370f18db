import { defineConfig } from "vitest/config";

/** The fast suite: `make test`. What takes minutes lives in test/long and runs with `make test-long`. */
export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    exclude: ["test/long/**"],
    pool: "forks",
    // Integration tests start up to a dozen processes each; two files at once fill two cores.
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
});
