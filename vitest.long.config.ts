import { defineConfig } from "vitest/config";

/** What takes minutes: `make test-long`. */
export default defineConfig({
  test: {
    include: ["test/long/**/*.test.ts"],
    pool: "forks",
    // Mostly one core busy per file: stages of one sequence take turns.
    maxWorkers: 2,
    // One line per test: minutes of silence would look like a hang.
    reporters: ["verbose"],
    testTimeout: 900_000,
    hookTimeout: 120_000,
  },
});
