/** Real processes as containers run them: configured by file and environment, beyond loopback, with keys. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { networkInterfaces, tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import OpenAI, { AuthenticationError } from "openai";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../common/package.js";
import type { ClusterView } from "../../coordinator/inference.js";
import { demoModel, freePort, TestCluster, TestProcess, tinyModel, until } from "../support/cluster.js";
import { GrpcClient } from "../support/grpc-client.js";
import { glmRelay } from "../unit/cli/support.js";

const main = join(packageRoot, "dist/cli/main.js");
const password = "pass word/with:%41@#?";
const key = "sk-first-0123456789abcdef";
const laterKey = "sk-later-fedcba9876543210";

/** An address of this machine that is not on loopback; without one another of loopback's, which shows less. */
const addresses = Object.values(networkInterfaces()).flatMap((each) => each ?? []);
const ownAddress =
  addresses.find(({ family, internal }) => family === "IPv4" && !internal)?.address ?? "127.0.0.2";
const hasIPv6 = addresses.some(({ address }) => address === "::1");

const chat = {
  model: "default",
  messages: [{ role: "user" as const, content: "What is the capital of France?" }],
  temperature: 0,
};

describe("a cluster that environment and one file configure", () => {
  const directory = mkdtempSync(join(tmpdir(), "glm-relay-configuration-"));
  const keysFile = join(directory, "keys");
  const processes: TestProcess[] = [];
  let url: string;
  let probes: string;
  let grpc: string;

  function start(name: string, args: string[], env: Record<string, string> = {}): TestProcess {
    const started = new TestProcess(name, process.execPath, [main, ...args], env);
    processes.push(started);
    return started;
  }

  async function view(): Promise<ClusterView> {
    const response = await fetch(`${url}/api/cluster`, { headers: { authorization: `Bearer ${key}` } });
    return (await response.json()) as ClusterView;
  }

  beforeAll(async () => {
    const [redisPort, port, grpcPort, clusterPort, probePort] = await Promise.all(
      Array.from({ length: 5 }, freePort),
    );
    const redis = new TestProcess("redis-server", "redis-server", [
      ...["--port", `${redisPort}`, "--dir", directory, "--save", "", "--requirepass", password],
      ...["--maxmemory-policy", "noeviction"],
    ]);
    processes.push(redis);
    await redis.line(/Ready to accept connections/);
    writeFileSync(keysFile, `# of a colleague\n${key}\n`);
    writeFileSync(join(directory, "redis-password"), `${password}\n`);
    const file = join(directory, "glm-relay.yaml");
    writeFileSync(
      file,
      `coordinator:
  model: ${demoModel}
  stages: 2
  host: 0.0.0.0
  port: ${port}
  grpc-port: 1
  cluster-listen: 0.0.0.0:${clusterPort}
  cluster-advertise: ${ownAddress}:0
  redis: redis://127.0.0.1:${redisPort}
  redis-password-file: ${join(directory, "redis-password")}
  api-keys-file: ${keysFile}
  insecure-workers: true
  probe-host: 0.0.0.0
  probe-port: ${probePort}
worker:
  coordinator: ${ownAddress}:${clusterPort}
  listen: 0.0.0.0:0
  advertise: ${ownAddress}:0
  insecure-workers: true
  memory: 512MiB
  threads: 1
  probe-host: 0.0.0.0
  probe-port: 0
`,
    );
    const environment = { GLM_RELAY_CONFIG: file, GLM_RELAY_GRPC_PORT: `${grpcPort}`, GLM_RELAY_THREADS: "" };
    const coordinator = start("coordinator", ["coordinator"], environment);
    for (const id of ["a", "b"]) start(id, ["worker"], { ...environment, GLM_RELAY_ID: id });
    [url, probes, grpc] = [
      `http://${ownAddress}:${port}`,
      `http://${ownAddress}:${probePort}`,
      `${ownAddress}:${grpcPort}`,
    ];
    await coordinator.line(/^ready http:\/\/0\.0\.0\.0:\d+$/m);
  });
  afterAll(async () => {
    for (const each of processes) each.kill("SIGKILL");
    await Promise.all(processes.map(({ exited }) => exited));
    rmSync(directory, { recursive: true, force: true });
  });

  it("answers the official client that has a key, at an address of the machine, and nobody else", async () => {
    const client = (apiKey: string) => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
    const answer = await client(key).chat.completions.create(chat);
    expect(answer.choices[0]!.message.content).toMatch(/Paris/);
    await expect(client("none").chat.completions.create(chat)).rejects.toThrow(AuthenticationError);
    const calls = new GrpcClient(grpc);
    const refused = await calls.generate({ prompt: "a" });
    expect(refused.status.code).toBe(status.UNAUTHENTICATED);
    const generated = await calls.generate({ prompt: "a" }, { authorization: `Bearer ${key}` });
    expect(generated.status.code).toBe(status.OK);
    calls.close();
  });

  it("has workers that reach each other where they say", async () => {
    const { workers, stages } = await view();
    expect(workers.map(({ id }) => id).sort()).toEqual(["a", "b"]);
    for (const { address } of workers) expect(address).toMatch(new RegExp(`^${ownAddress}:[1-9]\\d*$`));
    expect(stages).toHaveLength(2);
  });

  it("has probes that others reach, without a key", async () => {
    for (const path of ["/livez", "/readyz", "/metrics"]) {
      expect((await fetch(probes + path)).status).toBe(200);
    }
    for (const { probeAddress } of (await view()).workers) {
      const port = probeAddress!.split(":").at(-1);
      expect((await fetch(`http://${ownAddress}:${port}/readyz`)).status).toBe(200);
    }
  });

  it("gives the commands what they ask when they have a key", async () => {
    const none = await glmRelay(["status", "--url", url], { env: { OPENAI_API_KEY: "" } });
    expect([none.status, none.stderr]).toEqual([1, expect.stringContaining("[invalid_api_key]")]);
    const ownKey = join(directory, "own-key");
    writeFileSync(ownKey, `${key}\n`);
    const flag = await glmRelay(["status", "--url", url, "--api-key-file", ownKey]);
    expect([flag.status, flag.stdout]).toEqual([0, expect.stringContaining("state      ready")]);
    const ours = await glmRelay(["chat", "--url", url, chat.messages[0]!.content], {
      env: { GLM_RELAY_API_KEY: key, OPENAI_API_KEY: "other" },
    });
    expect([ours.status, ours.stdout]).toEqual([0, expect.stringContaining("Paris")]);
    const theirs = await glmRelay(["batch", "list", "--url", url], { env: { OPENAI_API_KEY: key } });
    // This coordinator keeps no files: but it knows who asks.
    expect(theirs.stderr).toContain("[not_supported]");
  });

  it("takes keys as the file changes, without a start", async () => {
    const asked = async (apiKey: string) =>
      (await fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${apiKey}` } })).status;
    expect(await asked(laterKey)).toBe(401);
    writeFileSync(keysFile, `${key}\n${laterKey}\n`);
    await until("the new key to be taken", async () => (await asked(laterKey)) === 200);
    expect(await asked(key)).toBe(200);
  });

  it("shows secrets in no list of processes and no log, and writes lines of JSON alone", () => {
    for (const each of processes.slice(1)) {
      const command = readFileSync(`/proc/${each.pid}/cmdline`, "utf8");
      for (const secret of [password, encodeURIComponent(password), key, laterKey]) {
        expect(command + each.output).not.toContain(secret);
      }
      const lines = each.output.split("\n").filter((line) => line !== "" && !line.startsWith("ready "));
      for (const line of lines) expect(JSON.parse(line)).toMatchObject({ level: expect.anything() });
    }
  });

  it("finishes what runs when all of it is told to end at once", async () => {
    const [, coordinator, ...workers] = processes;
    const running = fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
      body: JSON.stringify({ prompt: [5, 6, 7], max_tokens: 400, temperature: 0, ignore_eos: true }),
    });
    await until("the request to run", async () => (await view()).sequences.running === 1);
    for (const each of [...workers, coordinator!]) each.kill("SIGTERM");
    const response = await running;
    const answer = (await response.json()) as { usage?: { completion_tokens: number } };
    expect([response.status, answer.usage?.completion_tokens]).toEqual([200, 400]);
    expect(
      await Promise.all([coordinator!, ...workers].map(async ({ exited }) => (await exited).code)),
    ).toEqual([0, 0, 0]);
    expect(workers.map(({ output }) => /lost|replay/i.test(output))).toEqual([false, false]);
  });
});

describe("SIGTERM", () => {
  const long = { prompt: [5, 6, 7], max_tokens: 900, temperature: 0, ignore_eos: true };

  async function running(drainTimeout: string) {
    const flags = ["--drain-timeout", drainTimeout];
    const cluster = await TestCluster.start({ model: demoModel, stages: 2, coordinatorFlags: flags });
    // More than is computed while the test lasts.
    const answers = Promise.all(
      Array.from({ length: 16 }, () => cluster.post("/v1/completions", { ...long, n: 4 })),
    );
    // All have arrived: the connection of one that nobody has read yet would end with the process.
    await cluster.until(
      "the requests to run",
      ({ sequences: { running, waiting } }) => running > 8 && running + waiting === 16 * 4,
    );
    return { cluster, answers };
  }

  it("once waits, a second time ends what runs with an error, and the process with status 0", async () => {
    const { cluster, answers } = await running("3600");
    cluster.coordinator.kill("SIGTERM");
    await cluster.until("draining", ({ state }) => state === "draining");
    const refused = await cluster.post("/v1/completions", long);
    expect([refused.status, refused.body.error.code, refused.headers.get("retry-after")]).toEqual([
      503,
      "draining",
      "5",
    ]);
    await sleep(500);
    expect(cluster.coordinator.alive).toBe(true);
    cluster.coordinator.kill("SIGTERM");
    const begun = performance.now();
    expect((await cluster.coordinator.exited).code).toBe(0);
    expect(performance.now() - begun).toBeLessThan(9_000);
    const codes = (await answers).map(({ status: answered, body }) => body.error?.code ?? answered);
    expect(codes).toContain("draining");
    await cluster.stop();
  });

  it("with --drain-timeout 0 does not wait", async () => {
    const { cluster, answers } = await running("0");
    const begun = performance.now();
    cluster.coordinator.kill("SIGTERM");
    expect((await cluster.coordinator.exited).code).toBe(0);
    expect(performance.now() - begun).toBeLessThan(9_000);
    expect((await answers).map(({ body }) => body.error?.code)).toContain("draining");
    await cluster.stop();
  });

  it("lets a worker go on while it is needed, for so long as it was told", async () => {
    const workerFlags = (index: number) => ["--drain-timeout", index === 0 ? "2" : "3600"];
    const cluster = await TestCluster.start({ model: demoModel, stages: 2, workerFlags });
    const [first, second] = cluster.workers as [TestProcess, TestProcess];
    const ended = (each: TestProcess, sinceMs: number) =>
      each.exited.then(({ code }) => ({ code, ms: performance.now() - sinceMs }));
    const text = { ...long, max_tokens: 900, n: 8 };
    const answers = [cluster.post("/v1/completions", text), cluster.post("/v1/completions", text)];
    await cluster.until("the requests to run", ({ sequences }) => sequences.running > 8);
    const told = performance.now();
    first.kill("SIGTERM");
    const { code, ms } = await ended(first, told);
    expect(code).toBe(0);
    expect(ms).toBeGreaterThan(1_900);
    await cluster.revive();
    // What it left is computed again.
    for (const answer of answers) expect((await answer).status).toBe(200);
    // Nobody needs it: it waits for nothing but to see that.
    const idle = performance.now();
    second.kill("SIGTERM");
    const end = await ended(second, idle);
    expect(end.code).toBe(0);
    expect(end.ms).toBeLessThan(10_000);
    await cluster.stop();
  });
});

describe("up", () => {
  it("takes its settings from environment and file, and what it starts takes them from up alone", async () => {
    const directory = mkdtempSync(join(tmpdir(), "glm-relay-configuration-"));
    const file = join(directory, "glm-relay.yaml");
    // A coordinator that read its section would refuse to start, a worker look for another coordinator.
    const others = "coordinator:\n  host: 0.0.0.0\nworker:\n  listen: 0.0.0.0:0\n";
    writeFileSync(file, `up:\n  model: ${tinyModel}\n  stages: 1\n  port: 1\n${others}`);
    const environment = { GLM_RELAY_CONFIG: file, GLM_RELAY_PORT: "0", GLM_RELAY_COORDINATOR: "192.0.2.1:1" };
    const up = new TestProcess("up", process.execPath, [main, "up", "--stages", "2"], environment);
    try {
      const [, url] = await up.line(/^ready (http:\/\/127\.0\.0\.1:\d+)$/m, 60_000);
      const cluster = (await (await fetch(`${url}/api/cluster`)).json()) as ClusterView;
      expect(cluster.stages).toHaveLength(2);
    } finally {
      up.kill("SIGTERM");
      await up.exited;
      rmSync(directory, { recursive: true, force: true });
    }
  });
});

describe("the log", () => {
  it("is lines of JSON also when a start fails, the last of them the reason", async () => {
    const cluster = await TestCluster.start({ model: tinyModel, stages: 1 });
    const taken = (await cluster.view()).workers[0]!.address;
    const refused = await glmRelay(["worker", "--coordinator", "127.0.0.1:1", "--listen", taken]);
    const lines = refused.stderr
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    for (const line of lines) expect(line).toMatchObject({ component: "worker" });
    const reason = {
      level: 60,
      code: "invalid_configuration",
      msg: expect.stringMatching(/^cannot listen on /),
    };
    expect(lines.at(-1)).toMatchObject(reason);

    // The reason is told whatever the level: an exit status alone helps nobody.
    const silent = { env: { GLM_RELAY_LOG: "silent" } };
    const none = ["--model", "/nowhere", "--stages", "1", "--redis", "redis://127.0.0.1:1", "--port", "0"];
    const coordinator = await glmRelay(["coordinator", ...none], silent);
    expect(coordinator.status).toBe(1);
    const [line, ...more] = coordinator.stderr.trimEnd().split("\n");
    expect(more).toEqual([]);
    expect(JSON.parse(line!)).toMatchObject({ level: 60, component: "coordinator", code: "invalid_model" });
    await cluster.stop();
  });

  it("holds no mistake of the command line: that is told in plain words", async () => {
    const refused = await glmRelay(["worker", "--coordinator", "127.0.0.1:1", "--cpus", "1023"]);
    expect(refused.status).toBe(2);
    expect(refused.stderr).toMatch(/^error: option '--cpus <list>'.*\[invalid_configuration\]\n/);
  });
});

describe("addresses", () => {
  it.skipIf(!hasIPv6)("can be of IPv6 throughout", async () => {
    const port = await freePort();
    const cluster = await TestCluster.start({
      model: tinyModel,
      stages: 2,
      coordinatorFlags: ["--cluster-advertise", `[::1]:${port}`, "--cluster-listen", `[::1]:${port}`],
      workerFlags: () => ["--coordinator", `[::1]:${port}`, "--listen", "[::1]:0"],
      probes: true,
    });
    const { workers } = await cluster.view();
    for (const { address } of workers) expect(address).toMatch(/^\[::1\]:[1-9]\d*$/);
    expect((await cluster.post("/v1/completions", { prompt: [1, 2], max_tokens: 3 })).status).toBe(200);
    await cluster.stop();
  });

  it.each([
    [
      ["worker", "--coordinator", "192.0.2.1:7000"],
      /"192.0.2.1:7000" is beyond loopback.*--insecure-workers/,
    ],
    [
      ["worker", "--coordinator", "127.0.0.1:1", "--listen", "192.0.2.1:0"],
      /"192.0.2.1:0" is beyond loopback/,
    ],
    [
      ["worker", "--coordinator", "127.0.0.1:1", "--listen", "0.0.0.0:0", "--insecure-workers"],
      /--listen 0.0.0.0:0: nobody can dial a wildcard address, expected --advertise HOST:PORT/,
    ],
    [
      ["coordinator", "--model", tinyModel, "--stages", "1", "--redis", "redis://127.0.0.1:1"].concat([
        "--cluster-listen",
        "[::]:0",
        "--insecure-workers",
      ]),
      /--cluster-listen \[::\]:0: nobody can dial a wildcard address, expected --cluster-advertise/,
    ],
  ])("that cannot be are refused: %j", async (args, expected) => {
    const refused = await glmRelay([...args], { env: { GLM_RELAY_LOG: "fatal" } });
    expect(JSON.parse(refused.stderr).msg).toMatch(expected);
    expect(refused.status).toBe(1);
  });
});
