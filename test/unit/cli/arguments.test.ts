import { createServer } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { freePort } from "../../../cli/redis.js";
import { glmRelay, scratch } from "./support.js";

const subcommands = ["up", "coordinator", "worker", "chat", "batch", "status"];

describe("the command line", () => {
  it("has help for every subcommand and ends with 0", async () => {
    const results = await Promise.all(subcommands.map((command) => glmRelay([command, "--help"])));
    for (const [index, result] of results.entries()) {
      expect(result.status).toBe(0);
      expect(result.stdout).toContain(`Usage: glm-relay ${subcommands[index]}`);
    }
    const all = await glmRelay(["--help"]);
    expect(all.status).toBe(0);
    for (const command of subcommands) expect(all.stdout).toMatch(new RegExp(`^  ${command} `, "m"));
  });

  it.each([
    [[], /Usage: glm-relay/],
    [["upp"], /unknown command 'upp'/],
    [["up"], /required option '--model <dir>'/],
    [
      ["up", "--model", "m", "--stages", "0"],
      /'--stages <n>' argument '0' is invalid. Expected a whole number/,
    ],
    [["up", "--model", "m", "--stages", "2", "--dtype", "int9"], /'--dtype <type>' argument 'int9'.*float32/],
    [["up", "--model", "m", "--stages", "2", "--port", "70000"], /'--port <port>' argument '70000'.*65535/],
    [["up", "--model", "m", "--stages", "2", "--layers", "0-3,5-7"], /argument '0-3,5-7'.*must begin with 4/],
    [["up", "--model", "m", "--stages", "2", "--layers", "0-7"], /argument '0-7' has 1 range: expected 2/],
    [
      ["up", "--model", "m", "--stages", "2", "--pipelines", "0"],
      /'--pipelines <n>' argument '0'.*from 1 to 64/,
    ],
    ...["up", "coordinator"].map(
      (command) =>
        [
          [command, "--model", "m", "--stages", "2", "--itl-target-ms", "0.5"],
          /'--itl-target-ms <ms>' argument '0.5' is invalid. Expected a whole number from 1 to 60000/,
        ] as const,
    ),
    ...["up", "coordinator"].flatMap((command) =>
      (
        [
          [
            ["--files-days", "0"],
            /'--files-days <n>' argument '0' is invalid. Expected a whole number from 1 to 3650/,
          ],
          [["--files-bytes", "0"], /'--files-bytes <size>' argument '0' is invalid. Expected a size/],
          [["--disk-reserve", "some"], /'--disk-reserve <size>' argument 'some' is invalid. Expected a size/],
        ] as const
      ).map(([flags, message]) => [[command, "--model", "m", "--stages", "2", ...flags], message] as const),
    ),
    [["up", "--model", "m", "--stages", "2", "--gpu"], /unknown option '--gpu'/],
    [["worker", "--coordinator", "nowhere"], /'--coordinator <host:port>' argument 'nowhere'.*HOST:PORT/],
    [["worker", "--coordinator", "a:1", "--memory", "much"], /'--memory <size>' argument 'much'.*4GiB/],
    [["worker", "--coordinator", "a:1", "--cpus", "3-1"], /'--cpus <list>' argument '3-1'.*such as 0-3,8/],
    [["worker", "--coordinator", "a:1", "--cpus", "0,0"], /'--cpus <list>' argument '0,0'.*each once/],
    [["worker", "--coordinator", "a:1", "--cpus", "1023"], /'1023' names 1023: this process may use 0/],
    [
      ["worker", "--coordinator", "a:1", "--cpus", "0-2", "--threads", "2"],
      /'0,1,2' is 3 processors: expected one for each of 2 threads/,
    ],
    [
      ["up", "--model", "m", "--stages", "1000", "--pin-threads"],
      /'--pin-threads' wants a processor for each of 1000 compute threads: this process may use \d+/,
    ],
    [["coordinator", "--model", "m", "--stages", "2"], /required option '--redis <url>'/],
    [["chat", "--url", "ftp://x"], /'--url <url>' argument 'ftp:\/\/x'.*http/],
    [["status", "too", "many"], /too many arguments/],
    [["batch"], /Usage: glm-relay batch/],
    [["batch", "run", "in.jsonl"], /missing required argument 'out'/],
    [["batch", "run", "a", "b", "--priority", "101"], /'--priority <n>' argument '101'.*from -100 to 100/],
    [["batch", "run", "a", "b", "--metadata", "x"], /'--metadata <key=value>' argument 'x'.*KEY=VALUE/],
    [["batch", "submit", "a", "--webhook", "x"], /'--webhook <url>' argument 'x'.*http/],
    [["batch", "list", "--limit", "0"], /'--limit <n>' argument '0'.*from 1 to 100/],
    ...["up", "coordinator"].map(
      (command) =>
        [
          [command, "--model", "m", "--stages", "2", "--webhook-hosts", "http://a"],
          /'--webhook-hosts <hosts>' argument 'http:\/\/a'.*HOST:PORT or \*/,
        ] as const,
    ),
    [
      ["up", "--model", "m", "--stages", "2", "--webhook-secret-file", "f"],
      /'--webhook-secret-file <file>' needs --webhook-hosts/,
    ],
    [
      [..."coordinator --model m --stages 2 --redis redis://127.0.0.1:1 --webhook-hosts a".split(" ")],
      /'--webhook-hosts <hosts>' needs --data/,
    ],
  ] as const)("refuses %j with status 2 and says what was expected", async (args, message) => {
    const result = await glmRelay([...args]);
    expect(result.stderr).toMatch(message);
    expect(result.stdout).toBe("");
    expect(result.status).toBe(2);
  });

  it("keeps an API without keys on loopback", async () => {
    const args = ["coordinator", "--model", "m", "--stages", "2", "--redis", "redis://127.0.0.1:1"];
    const result = await glmRelay([...args, "--host", "0.0.0.0"]);
    expect(result.stderr).toMatch(/^error: option '--host <host>' argument '0.0.0.0' is beyond loopback/);
    expect(result.status).toBe(2);
  });

  it("tells in one line that nobody answers", async () => {
    const url = `http://127.0.0.1:${await freePort()}`;
    for (const args of [["status"], ["status", "--json"], ["chat", "hello"]]) {
      const result = await glmRelay([...args, "--url", url]);
      expect(result.stderr).toMatch(new RegExp(`^error: no answer from ${url}/.*: ECONNREFUSED\n$`));
      expect(result.status).toBe(1);
    }
  });
});

describe("up", () => {
  it("names a port that is in use and ends at once", async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void server.close());
    const { port } = server.address() as { port: number };
    const result = await glmRelay(["up", "--model", "m", "--stages", "2", "--port", String(port)]);
    expect(result.stderr).toMatch(new RegExp(`^error: port ${port} on 127.0.0.1 is in use.*--port`));
    expect(result.status).toBe(1);
  });

  it("says how to install a missing Redis", async () => {
    const args = ["up", "--model", "m", "--stages", "2", "--port", "0", "--data", scratch()];
    const result = await glmRelay(args, { env: { PATH: "/nonexistent" } });
    expect(result.stderr).toContain("apt-get install -y redis-server");
    expect(result.status).toBe(1);
  });

  it("refuses a REDIS_URL that is none", async () => {
    const args = ["up", "--model", "m", "--stages", "2", "--port", "0", "--data", scratch()];
    const result = await glmRelay(args, { env: { REDIS_URL: "localhost" } });
    expect(result.stderr).toMatch(/REDIS_URL 'localhost' is invalid. Expected an address/);
    expect(result.status).toBe(2);
  });
});
