/** llama.cpp's RPC servers in a benchmark, with programs that only look like them. */
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { OwnedProcess, runOwned } from "../../../bench/owned-process.js";
import {
  type BatchedLine,
  decodeArguments,
  prefillArguments,
  runRpc,
  speedsOf,
} from "../../../bench/peer-rpc.js";
import { buildRpc } from "../../../bench/peer-rpc-build.js";
import type { SpeedTask } from "../../../bench/speed-task.js";

const task: SpeedTask = {
  ...{ tokenCount: 100, prefillLengths: [8, 64], sequenceCounts: [1, 4], contexts: [32], tokens: 16 },
};

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "glm-relay-rpc-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function script(name: string, body: string): string {
  const file = join(directory, name);
  writeFileSync(file, `#!${process.execPath}\n${body}`);
  chmodSync(file, 0o755);
  return file;
}

const pidsFile = () => join(directory, "pids");
const notePid = () =>
  `require("node:fs").appendFileSync(${JSON.stringify(pidsFile())}, process.pid + "\\n");\n`;
const pids = () => readLines(pidsFile()).map(Number);

const listens = (then = "") =>
  `${notePid()}const port = process.argv[process.argv.indexOf("--port") + 1];
  require("node:net").createServer().listen(port, "127.0.0.1", () => { ${then} });\n`;

/** Prints what llama-batched-bench prints; speeds tell prompt and count. */
const measures = () => `${notePid()}
const value = (name) => process.argv[process.argv.indexOf(name) + 1];
const list = (name) => value(name).split(",").map(Number);
console.log("a line of the log");
for (const pp of list("-npp")) for (const tg of list("-ntg")) for (const pl of list("-npl")) {
  console.log(JSON.stringify({ pp, tg, pl, t_pp: 0, speed_pp: 1000 + pp, t_tg: 0, speed_tg: 100 * pl + pp }));
}
`;

function readLines(file: string): string[] {
  return readFileSync(file, "utf8").trim().split("\n");
}

/** A zombie that nobody has asked for yet does not. */
function lives(pid: number): boolean {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

describe("what the client is told", () => {
  const value = (args: string[], name: string) => args[args.indexOf(name) + 1];

  it("leaves room for the longest of as many sequences as run at once", () => {
    const long = { ...task, contexts: [8, 1_024], prefillLengths: [64, 2_048] };
    expect(value(decodeArguments(long), "--ctx-size")).toBe(String(4 * (1_024 + 16)));
    expect(value(prefillArguments(long), "--ctx-size")).toBe(String(2_048 + 1));
    // Of less than that it makes no use.
    expect(value(decodeArguments(task), "--ctx-size")).toBe("256");
  });

  it("has the longest prompt first, for what is touched for the first time", () => {
    expect(value(prefillArguments(task), "-npp")).toBe("64,8,64");
  });
});

describe("speeds", () => {
  const line = (pp: number, pl: number, speed: number): BatchedLine => ({
    ...{ pp, tg: 1, pl, t_pp: 1, speed_pp: speed, t_tg: 1, speed_tg: speed },
  });

  it("are the last of each kind: the first of the longest prompt was the warm-up", () => {
    const prefill = [line(64, 1, 5), line(8, 1, 6), line(64, 1, 7)];
    expect(speedsOf(task, prefill, [line(32, 1, 8), line(32, 4, 9)])).toEqual({
      prefill: { 8: 6, 64: 7 },
      decode: { "1@32": 8, "4@32": 9 },
    });
  });

  it("are missed when the client left one out", () => {
    const prefill = [line(8, 1, 6), line(64, 1, 7)];
    expect(() => speedsOf(task, prefill, [line(32, 1, 8)])).toThrow("did not measure 4 prompts of 32 tokens");
  });
});

describe("a run", () => {
  const run = (server: string, bench: string) =>
    runRpc({ programs: { server, bench }, file: "model.gguf", threadsPerServer: 1, task });

  it("measures with two servers and leaves none of the processes", async () => {
    const figures = await run(script("server", listens()), script("bench", measures()));
    expect(figures.prefill).toEqual({ 8: 1008, 64: 1064 });
    expect(figures.decode).toEqual({ "1@32": 132, "4@32": 432 });
    expect(figures.loadSeconds).toBeGreaterThan(0);
    expect(figures.anonymousBytes).toBeGreaterThan(1 << 20);
    expect(figures.peakBytes).toBeGreaterThan(figures.anonymousBytes);
    expect(pids()).toHaveLength(4);
    expect(pids().filter(lives)).toEqual([]);
  });

  it("ends with the words of a client that fails", async () => {
    const bench = script("bench", `${notePid()}console.error("no such model"); process.exit(1);`);
    await expect(run(script("server", listens()), bench)).rejects.toThrow(/bench failed: no such model/);
    expect(pids()).toHaveLength(3);
    expect(pids().filter(lives)).toEqual([]);
  });

  it("ends with the words of a server that fails, although the client waits", async () => {
    const server = script(
      "server",
      listens(`setTimeout(() => { console.error("port is taken"); process.exit(0); }, 500);`),
    );
    const bench = script("bench", `${notePid()}setInterval(() => {}, 1000);`);
    await expect(run(server, bench)).rejects.toThrow(/server failed: port is taken/);
    expect(pids().filter(lives)).toEqual([]);
  });
});

describe("a program of others", () => {
  it("takes with it what it started", async () => {
    const child = script("child", `${notePid()}setInterval(() => {}, 1000);`);
    const parent = script(
      "parent",
      `require("node:child_process").spawn(${JSON.stringify(child)}); setInterval(() => {}, 1000);`,
    );
    const owned = new OwnedProcess(parent, []);
    while (!existsSync(pidsFile()) || readLines(pidsFile())[0] === "") await sleep(10);
    const [pid] = pids();
    expect(lives(pid!)).toBe(true);
    owned.kill();
    expect(await owned.ended).toBe(false);
    for (let tries = 0; lives(pid!) && tries < 100; tries++) await sleep(20);
    expect(lives(pid!)).toBe(false);
  });

  it("that is not there is named", async () => {
    await expect(runOwned("no-such-program-of-ours", [])).rejects.toThrow(
      /no-such-program-of-ours failed: .*ENOENT/,
    );
  });
});

describe("building", () => {
  it("tells which file of the package is missing", async () => {
    await expect(buildRpc(directory)).rejects.toThrow(/llama\/gitRelease\.bundle is missing.*--peer DIR/);
  });

  it("tells that cmake is missing", async () => {
    const folder = join(directory, "node_modules/node-llama-cpp/llama");
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "gitRelease.bundle"), "");
    writeFileSync(join(folder, "llama.cpp.info.json"), `{"tag":"v1"}`);
    script("git", "");
    const path = process.env.PATH;
    process.env.PATH = directory;
    try {
      await expect(buildRpc(directory)).rejects.toThrow(/--rpc needs cmake.*ENOENT/);
    } finally {
      process.env.PATH = path;
    }
  });
});
