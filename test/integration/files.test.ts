/** Files of a real coordinator: through the official client, over restarts, and on a disk that is full. */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI, { toFile } from "openai";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { packageRoot } from "../../common/package.js";
import { freePort, TestCluster, TestProcess, tinyModel, until } from "../support/cluster.js";

const main = join(packageRoot, "dist/cli/main.js");

async function startCoordinator(data: string, files: string[] = []): Promise<TestCluster> {
  return TestCluster.start({ stages: 2, workers: false, data, files });
}

const clientOf = (cluster: TestCluster, tenant?: string) =>
  new OpenAI({
    baseURL: `${cluster.url}/v1`,
    apiKey: "none",
    maxRetries: 0,
    ...(tenant === undefined ? {} : { defaultHeaders: { "x-glm-tenant": tenant } }),
  });

describe("files of a coordinator that waits for its workers", () => {
  let cluster: TestCluster;
  let client: OpenAI;
  let data: string;
  beforeAll(async () => {
    data = join(mkdtempSync(join(tmpdir(), "glm-relay-data-")), "made", "here");
    cluster = await startCoordinator(data);
    client = clientOf(cluster);
  });
  afterAll(async () => {
    await cluster?.stop();
    rmSync(join(data, "../.."), { recursive: true, force: true });
  });

  async function restart(signal: NodeJS.Signals): Promise<void> {
    cluster.coordinator.kill(signal);
    await cluster.coordinator.exited;
    cluster.startCoordinator(await freePort());
    await cluster.until("the coordinator to listen", () => true);
    client = clientOf(cluster);
  }

  const folders = () => readdirSync(join(data, "files"));

  it("the official client uploads, lists, reads and deletes", async () => {
    const bytes = randomBytes(3_000_000);
    const made = await client.files.create({
      file: await toFile(bytes, "../../requests.jsonl"),
      purpose: "batch",
      expires_after: { anchor: "created_at", seconds: 3_600 },
    });
    expect(made).toMatchObject({
      object: "file",
      bytes: bytes.length,
      purpose: "batch",
      status: "processed",
    });
    expect(made.filename).toBe("requests.jsonl");
    expect(made.expires_at).toBe(made.created_at + 3_600);
    expect(await client.files.retrieve(made.id)).toEqual(made);
    const content = await client.files.content(made.id);
    expect(Buffer.from(await content.arrayBuffer()).equals(bytes)).toBe(true);

    const names: string[] = [];
    for (let i = 0; i < 5; i++) {
      const named = await client.files.create({
        file: await toFile(Buffer.from("{}\n"), `${i}`),
        purpose: "batch",
      });
      names.push(named.filename);
    }
    const seen: string[] = [];
    for await (const file of client.files.list({ limit: 2, order: "asc" })) seen.push(file.filename);
    expect(seen).toEqual(["requests.jsonl", ...names]);
    expect((await client.files.list({ purpose: "batch_output" })).data).toEqual([]);

    expect(await client.files.delete(made.id)).toEqual({ id: made.id, object: "file", deleted: true });
    await expect(client.files.retrieve(made.id)).rejects.toMatchObject({ status: 404, code: "not_found" });
    await expect(
      client.files.create({ file: await toFile(Buffer.from("x"), "x"), purpose: "assistants" }),
    ).rejects.toMatchObject({ status: 400, param: "purpose" });
    const other = clientOf(cluster, "other");
    expect((await other.files.list()).data).toEqual([]);
    for await (const file of client.files.list()) await client.files.delete(file.id);
    expect(folders()).toEqual([]);
  });

  it("are there after a kill, and what was half-way is not", async () => {
    const made = await client.files.create({
      file: await toFile(Buffer.from("kept\n"), "kept"),
      purpose: "batch",
    });
    const socket = connect(Number(new URL(cluster.url).port), "127.0.0.1");
    onTestFinished(() => void socket.destroy());
    socket.on("error", () => undefined);
    socket.write(
      "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n" +
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n" +
        '--b\r\nContent-Disposition: form-data; name="file"; filename="half"\r\n\r\n',
    );
    socket.write("x".repeat(500_000));
    await until("half of it to be there", () => readdirSync(join(data, "uploads")).length === 1);
    await restart("SIGKILL");
    expect(readdirSync(join(data, "uploads"))).toEqual([]);
    expect(folders()).toEqual([made.id]);
    expect(await client.files.retrieve(made.id)).toEqual(made);
    await restart("SIGTERM");
    expect(await (await client.files.content(made.id)).text()).toBe("kept\n");
    await client.files.delete(made.id);
  });

  it("a kill at any moment of an upload leaves a whole file or none", { timeout: 120_000 }, async () => {
    const bytes = Buffer.alloc(2_000_000, "0123456789\n");
    let answered = 0;
    for (let round = 0; round < 6; round++) {
      const uploads = Array.from({ length: 6 }, async () =>
        client.files.create({ file: await toFile(bytes, `${round}`), purpose: "batch" }).then(
          () => answered++,
          () => 0,
        ),
      );
      await new Promise((resolve) => setTimeout(resolve, 10 + 40 * round));
      await restart("SIGKILL");
      await Promise.all(uploads);
      const kept = (await client.files.list()).data;
      expect(kept.length).toBeGreaterThanOrEqual(answered);
      expect(folders().sort()).toEqual(kept.map(({ id }) => id).sort());
      for (const { id } of kept)
        expect(readFileSync(join(data, "files", id, "content")).equals(bytes)).toBe(true);
    }
    for await (const file of client.files.list()) await client.files.delete(file.id);
  });

  it("a second coordinator on the same directory is refused at its start", async () => {
    const args = [
      "coordinator",
      "--model",
      tinyModel,
      "--stages",
      "2",
      "--port",
      "0",
      "--redis",
      cluster.redis.url,
    ];
    const second = new TestProcess("second", process.execPath, [
      main,
      ...args,
      "--name",
      "other",
      "--data",
      data,
    ]);
    expect((await second.exited).code).toBe(1);
    expect(second.output).toContain(
      `--data ${data}: another coordinator works on this directory, expected one coordinator per directory`,
    );
    expect((await client.files.list()).data).toEqual([]);
  });
});

/** A file system of its own, of so many MiB. @throws Error where this process may not mount one. */
function smallDisk(mib: number): string {
  const path = mkdtempSync(join(tmpdir(), "glm-relay-small-disk-"));
  try {
    execFileSync("mount", ["-t", "tmpfs", "-o", `size=${mib}m`, "tmpfs", path], { stdio: "pipe" });
    return path;
  } catch (error) {
    rmSync(path, { recursive: true, force: true });
    throw error;
  }
}

function mayMount(): boolean {
  try {
    removeDisk(smallDisk(1));
    return true;
  } catch (error) {
    console.warn(`skipped: no tmpfs can be mounted here: ${(error as Error).message.trim()}`);
    return false;
  }
}

function removeDisk(path: string): void {
  execFileSync("umount", [path]);
  rmSync(path, { recursive: true, force: true });
}

describe.skipIf(!mayMount())("a disk that is full", () => {
  it.each([
    ["to its last byte", "0"],
    ["to its reserve", "2MiB"],
  ])(
    "%s answers 507, keeps what was there and takes files again when there is room",
    async (_, reserve) => {
      const disk = smallDisk(8);
      onTestFinished(() => removeDisk(disk));
      const data = join(disk, "data");
      const cluster = await startCoordinator(data, ["--disk-reserve", reserve]);
      onTestFinished(async () => void (await cluster.stop()));
      const client = clientOf(cluster);
      const megabyte = Buffer.alloc(1_000_000, "x");
      const upload = async (bytes: Buffer) =>
        client.files.create({ file: await toFile(bytes, "in.jsonl"), purpose: "batch" });
      const kept: string[] = [];
      const refusal = { status: 507, code: "storage_full", type: "server_error" };
      await expect(
        (async () => {
          for (let i = 0; i < 12; i++) kept.push((await upload(megabyte)).id);
        })(),
      ).rejects.toMatchObject(refusal);
      expect(kept.length).toBeGreaterThan(3);
      // Without a length in its head it is found out only while it is written.
      const chunked = await fetch(`${cluster.url}/v1/files`, {
        method: "POST",
        headers: { "content-type": "multipart/form-data; boundary=b" },
        body: new ReadableStream({
          start(controller) {
            controller.enqueue(
              Buffer.from('--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'),
            );
            for (let i = 0; i < 9; i++) controller.enqueue(megabyte);
            controller.enqueue(Buffer.from("\r\n--b--\r\n"));
            controller.close();
          },
        }),
        duplex: "half",
      } as RequestInit);
      expect(chunked.status).toBe(507);
      expect(chunked.headers.get("x-should-retry")).toBe("false");
      expect(Number(chunked.headers.get("retry-after"))).toBeGreaterThan(0);
      expect(readdirSync(join(data, "uploads"))).toEqual([]);
      expect(readdirSync(join(data, "files")).sort()).toEqual([...kept].sort());
      for (const id of kept) {
        const content = Buffer.from(await (await client.files.content(id)).arrayBuffer());
        expect(content.equals(megabyte)).toBe(true);
      }
      await client.files.delete(kept.pop()!);
      await client.files.delete(kept.pop()!);
      await until("room to be seen", () => upload(megabyte).catch(() => null));
    },
    60_000,
  );

  it("for other reasons refuses by the write itself, and loses nothing", async () => {
    const disk = smallDisk(8);
    onTestFinished(() => removeDisk(disk));
    const data = join(disk, "data");
    mkdirSync(data);
    const cluster = await startCoordinator(data, ["--disk-reserve", "0"]);
    onTestFinished(async () => void (await cluster.stop()));
    const client = clientOf(cluster);
    const before = await client.files.create({
      file: await toFile(Buffer.from("kept"), "a"),
      purpose: "batch",
    });
    // The figure that the coordinator holds for a second is no longer true.
    writeFileSync(join(disk, "ballast"), Buffer.alloc(7_000_000));
    const answer = client.files.create({
      file: await toFile(Buffer.alloc(3_000_000), "b"),
      purpose: "batch",
    });
    await expect(answer).rejects.toMatchObject({ status: 507, code: "storage_full" });
    expect((await client.files.list()).data).toEqual([before]);
    expect(readdirSync(join(data, "uploads"))).toEqual([]);
    expect(readdirSync(join(data, "files"))).toEqual([before.id]);
    rmSync(join(disk, "ballast"));
    await until("room to be seen", () => client.files.delete(before.id));
  }, 60_000);
});
