import { expect, onTestFinished, test } from "vitest";
import { Probe, type ProbeOptions } from "../../../common/probe.js";

const never = () => new Promise<never>(() => undefined);

async function start(options: Partial<ProbeOptions> = {}) {
  const probe = new Probe({
    port: 0,
    metrics: { scrape: async () => "page 1\n", contentType: "text/plain; version=0.0.4" },
    notReady: () => null,
    ...options,
  });
  const address = await probe.listen();
  onTestFinished(() => probe.close());
  return {
    address,
    get: async (path: string, method = "GET") => {
      const response = await fetch(`http://${address}${path}`, { method });
      return { status: response.status, headers: response.headers, body: await response.text() };
    },
  };
}

test("a process that is not ready is alive all the same, and says what is missing", async () => {
  const { get } = await start({ notReady: () => "loading: 1 of 2 stages ready" });
  expect(await get("/livez")).toMatchObject({ status: 200, body: "ok\n" });
  expect(await get("/readyz")).toMatchObject({ status: 503, body: "loading: 1 of 2 stages ready\n" });
});

test("probes answer while a scrape waits for something that never comes", async () => {
  const { address, get } = await start({ metrics: { scrape: never, contentType: "text/plain" } });
  const leaving = new AbortController();
  const hanging = fetch(`http://${address}/metrics`, { signal: leaving.signal }).catch(() => "aborted");
  expect((await get("/livez")).status).toBe(200);
  expect((await get("/readyz")).status).toBe(200);
  leaving.abort();
  expect(await hanging).toBe("aborted");
});

test("a page that cannot be made is a 500 with its reason, and the next one works", async () => {
  let broken = true;
  const scrape = async () => {
    if (broken) throw new Error("no figures");
    return "page 2\n";
  };
  const { get } = await start({ metrics: { scrape, contentType: "text/plain; version=0.0.4" } });
  expect(await get("/metrics")).toMatchObject({ status: 500, body: "no figures\n" });
  broken = false;
  const page = await get("/metrics?name=x");
  expect([page.status, page.body, page.headers.get("content-type")]).toEqual([
    200,
    "page 2\n",
    "text/plain; version=0.0.4",
  ]);
});

test("other paths are 404 and other methods 405", async () => {
  const { get } = await start();
  expect((await get("/v1/models")).status).toBe(404);
  const refused = await get("/livez", "POST");
  expect([refused.status, refused.headers.get("allow")]).toEqual([405, "GET, HEAD"]);
  expect(await get("/livez", "HEAD")).toMatchObject({ status: 200, body: "" });
});

test("listens on loopback only, and a port that is taken is an error that names it", async () => {
  const { address } = await start();
  const port = Number(address.split(":")[1]);
  expect(address).toBe(`127.0.0.1:${port}`);
  await expect(start({ port })).rejects.toMatchObject({
    code: "invalid_configuration",
    message: expect.stringContaining(`cannot listen on probe port ${port}`),
  });
});

test("is reached from outside when it is told to listen there, IPv6 too", async () => {
  const { address } = await start({ host: "0.0.0.0" });
  expect(address).toMatch(/^0\.0\.0\.0:[1-9]/);
  const port = address.split(":").at(-1);
  expect((await fetch(`http://127.0.0.2:${port}/livez`)).status).toBe(200);
  await expect(start({ host: "192.0.2.77" })).rejects.toThrow(
    /cannot listen on probe port 0 of 192\.0\.2\.77/,
  );
});
