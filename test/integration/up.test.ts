import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { packageRoot } from "../../common/package.js";
import type { ClusterView } from "../../coordinator/inference.js";
import { TestProcess, tinyModel, until } from "../support/cluster.js";
import { GrpcClient } from "../support/grpc-client.js";

const main = join(packageRoot, "dist/cli/main.js");
const body = JSON.stringify({
  prompt: [3, 1, 4],
  max_tokens: 5,
  temperature: 0,
  ignore_eos: true,
  logprobs: 0,
});

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

describe("glm-relay up", () => {
  let data: string;
  let up: TestProcess;
  let url: string;
  beforeAll(async () => {
    data = mkdtempSync(join(tmpdir(), "glm-relay-up-"));
    const args = [main, "up", "--model", tinyModel, "--stages", "2", "--port", "0", "--data", data];
    args.push("--layers", "0-0,1-3", "--grpc-port", "0");
    up = new TestProcess("up", process.execPath, args);
    url = (await up.line(/^ready (http:\/\/127\.0\.0\.1:\d+)$/m))[1]!;
  });
  afterAll(() => {
    up?.kill("SIGKILL");
    rmSync(data, { recursive: true, force: true });
  });

  const view = async (): Promise<ClusterView> =>
    (await (await fetch(`${url}/api/cluster`)).json()) as ClusterView;
  async function answer(): Promise<unknown> {
    const headers = { "content-type": "application/json" };
    const response = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
    return response.status === 200 ? ((await response.json()) as { choices: unknown[] }).choices[0] : null;
  }
  const answerAgain = () =>
    until(
      "an answer",
      () => answer().catch(() => null),
      30_000,
      () => up.output,
    );

  it("gives every process it started a probe port of its own", async () => {
    const { probeAddress, workers } = await view();
    const addresses = [probeAddress, ...workers.map((worker) => worker.probeAddress)];
    expect(new Set(addresses).size).toBe(3);
    for (const address of addresses) {
      const answers = ["livez", "readyz", "metrics"].map((path) => fetch(`http://${address}/${path}`));
      expect((await Promise.all(answers)).map(({ status }) => status)).toEqual([200, 200, 200]);
    }
  });

  it("gives every worker the layers that --layers names", async () => {
    expect((await view()).stages).toMatchObject([
      { worker: "worker-0", layerBegin: 0, layerEnd: 1 },
      { worker: "worker-1", layerBegin: 1, layerEnd: 4 },
    ]);
  });

  it("serves gRPC where it says", async () => {
    const { grpcAddress } = await view();
    expect(up.output).toContain(`gRPC at ${grpcAddress}\n`);
    const client = new GrpcClient(grpcAddress!);
    expect(await client.health()).toBe("SERVING");
    client.close();
  });

  it("restarts a dead worker, a dead coordinator and a dead Redis, and the answer stays the same", async () => {
    const first = await answer();
    expect(first).not.toBeNull();
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", new Blob(["kept\n"]), "in.jsonl");
    const made = await fetch(`${url}/v1/files`, { method: "POST", body: form });
    expect(made.status).toBe(200);
    const { id } = (await made.json()) as { id: string };
    expect(readFileSync(join(data, "service/files", id, "content"), "utf8")).toBe("kept\n");
    const worker = (await view()).workers[1]!;
    process.kill(worker.pid, "SIGKILL");
    expect(await answerAgain()).toEqual(first);
    await until("the restarted worker", async () =>
      (await view()).workers.every(({ pid }) => pid !== worker.pid),
    );

    const before = await view();
    process.kill(pidOf("coordinator"), "SIGKILL");
    expect(await answerAgain()).toEqual(first);
    expect((await view()).epoch!.term).toBeGreaterThan(before.epoch!.term);
    expect((await view()).grpcAddress).toBe(before.grpcAddress);

    const terms = (await view()).epoch!.term;
    process.kill(pidOf("redis-server"), "SIGKILL");
    await until(
      "Redis to be missed",
      async () => !(await view()).redisUp || up.output.includes("redis lost"),
    );
    expect(await answerAgain()).toEqual(first);
    // The same data came back: a fresh Redis would begin to count terms from one again.
    process.kill(pidOf("coordinator"), "SIGKILL");
    await answerAgain();
    expect((await view()).epoch!.term).toBeGreaterThan(terms);
    expect(await (await fetch(`${url}/v1/files/${id}/content`)).text()).toBe("kept\n");
  });

  it("ends with status 0 on SIGTERM and leaves no process behind", async () => {
    const pids = [
      ...(await view()).workers.map(({ pid }) => pid),
      pidOf("coordinator"),
      pidOf("redis-server"),
    ];
    expect(pids.every(alive)).toBe(true);
    const asked = performance.now();
    up.kill("SIGTERM");
    expect((await up.exited).code).toBe(0);
    expect(performance.now() - asked).toBeLessThan(10_000);
    expect(pids.filter(alive)).toEqual([]);
    expect(up.output.match(/^ready /gm)).toHaveLength(1);
  });

  /** The child of `up` whose command line names this. */
  function pidOf(name: string): number {
    const children = readFileSync(`/proc/${up.pid}/task/${up.pid}/children`, "utf8")
      .trim()
      .split(" ")
      .map(Number);
    const found = children.find((pid) => {
      const command = readFileSync(`/proc/${pid}/cmdline`, "utf8").split("\0");
      // Redis writes its address behind its own name.
      return command.some((word) => new RegExp(`(^|/)${name}( |$)`).test(word));
    });
    if (found === undefined) throw new Error(`up has no child ${name}`);
    return found;
  }
});
