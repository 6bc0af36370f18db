/** Contents, lists, deletion, and what stands beside them. */
import { rmSync } from "node:fs";
import { connect } from "node:net";
import { beforeEach, describe, expect, it, onTestFinished } from "vitest";
import { get, type Json } from "../support.js";
import {
  api,
  content,
  file,
  leftovers,
  lines,
  purpose,
  restart,
  restartWithoutFiles,
  serveFiles,
  store,
  until,
  upload,
} from "./support.js";

serveFiles();

describe("content", () => {
  let id: string;
  beforeEach(async () => {
    id = (await upload([["file", "0123456789", "näme (1).jsonl"], purpose])).body.id;
  });

  it("is whole, named and nothing that a browser shows", async () => {
    const { status, headers, body } = await content(id);
    expect(status).toBe(200);
    expect(body.toString()).toBe("0123456789");
    expect(Object.fromEntries(headers)).toMatchObject({
      "content-length": "10",
      "content-type": "application/octet-stream",
      "accept-ranges": "bytes",
      etag: `"${id}"`,
      "x-content-type-options": "nosniff",
      "content-disposition": "attachment; filename*=UTF-8''n%C3%A4me%20%281%29.jsonl",
    });
  });

  it.each([
    ["bytes=2-4", "234", "bytes 2-4/10"],
    ["bytes=7-", "789", "bytes 7-9/10"],
    ["bytes=-2", "89", "bytes 8-9/10"],
  ])("%s is a part of it", async (range, expected, contentRange) => {
    const { status, headers, body } = await content(id, { range });
    expect([status, body.toString()]).toEqual([206, expected]);
    expect(headers.get("content-range")).toBe(contentRange);
    expect(headers.get("content-length")).toBe(String(expected.length));
    const head = await content(id, { range }, "HEAD");
    expect([head.status, head.headers.get("content-length"), head.body.length]).toEqual([
      206,
      String(expected.length),
      0,
    ]);
  });

  it("a range behind its end is 416 and says how long it is", async () => {
    const { status, headers, body } = await content(id, { range: "bytes=10-" });
    expect(status).toBe(416);
    expect(headers.get("content-range")).toBe("bytes */10");
    expect(JSON.parse(body.toString()).error).toMatchObject({
      code: "range_not_satisfiable",
      param: "range",
    });
  });

  it("a part is for whoever has the rest of the same file", async () => {
    const same = await content(id, { range: "bytes=2-4", "if-range": `"${id}"` });
    const other = await content(id, { range: "bytes=2-4", "if-range": '"file-other"' });
    expect([same.status, other.status, other.body.length]).toEqual([206, 200, 10]);
  });

  it("may be nothing", async () => {
    const empty = (await upload([["file", "", "a"], purpose])).body.id;
    const { status, headers, body } = await content(empty);
    expect([status, headers.get("content-length"), body.length]).toEqual([200, "0", 0]);
    expect((await content(empty, { range: "bytes=0-" })).status).toBe(416);
    expect((await content(empty, {}, "HEAD")).headers.get("content-length")).toBe("0");
  });

  it("goes on to its end when it is deleted meanwhile", async () => {
    const bytes = Buffer.alloc(30_000_000, "x");
    const large = (await upload([["file", bytes, "a"], purpose])).body.id;
    const response = await fetch(`${api.address}/v1/files/${large}/content`);
    expect((await get(api, `/v1/files/${large}`, "DELETE")).status).toBe(200);
    expect((await response.arrayBuffer()).byteLength).toBe(bytes.length);
    expect((await content(large)).status).toBe(404);
  });

  it("that went from the disk by other hands is 404", async () => {
    rmSync(store.pathOf(id, "default")!);
    expect((await content(id)).status).toBe(404);
  });

  it("is not sent for ever to a client that does not read", async () => {
    await restart({ timing: { stalledClientMs: 200 } });
    const large = (await upload([["file", Buffer.alloc(50_000_000), "a"], purpose])).body.id;
    const { hostname, port } = new URL(api.address);
    const socket = connect(Number(port), hostname);
    onTestFinished(() => void socket.destroy());
    socket.pause();
    socket.write(`GET /v1/files/${large}/content HTTP/1.1\r\nHost: x\r\n\r\n`);
    await until(() => lines.some(({ route, status }) => route === "/v1/files/:id/content" && status === 499));
  });
});

describe("lists and deletion", () => {
  it("pages are told as OpenAI tells them", async () => {
    const ids: string[] = [];
    for (let i = 0; i < 3; i++) ids.unshift((await upload([file, purpose])).body.id);
    const all = (await get(api, "/v1/files")).body;
    expect(all).toMatchObject({ object: "list", first_id: ids[0], last_id: ids[2], has_more: false });
    expect(all.data.map(({ id }: Json) => id)).toEqual(ids);
    const page = (await get(api, `/v1/files?limit=1&after=${ids[0]}&purpose=batch`)).body;
    expect(page).toMatchObject({ first_id: ids[1], last_id: ids[1], has_more: true });
    expect((await get(api, "/v1/files?order=asc&limit=1")).body.data[0].id).toBe(ids[2]);
    expect((await get(api, "/v1/files?purpose=batch_output")).body).toEqual({
      object: "list",
      data: [],
      first_id: null,
      last_id: null,
      has_more: false,
    });
  });

  it.each([
    ["limit=0", "limit", "an integer from 1 to 10000"],
    ["limit=1.5", "limit", "an integer from 1 to 10000"],
    ["limit=1&limit=2", "limit", "an integer from 1 to 10000"],
    ["order=up", "order", "desc or asc"],
    ["purpose=assistants", "purpose", "batch or batch_output"],
    [`after=${"x".repeat(300)}`, "after", "the id of the last file that was seen"],
  ])("%s is refused", async (query, param, expected) => {
    const { status, body } = await get(api, `/v1/files?${query}`);
    expect(status).toBe(400);
    expect(body.error).toMatchObject({ code: "invalid_value", param });
    expect(body.error.message).toContain(`expected ${expected}`);
  });

  it("what is not there is 404, and so is what another has", async () => {
    const { id } = (await upload([file, purpose], { "x-glm-tenant": "a" })).body;
    for (const name of [id, "file-0", "..%2F..%2Fetc%2Fpasswd", `${id}%2F..%2F${id}`, "%00"]) {
      for (const [path, method] of <[string, string][]>[
        [`/v1/files/${name}`, "GET"],
        [`/v1/files/${name}/content`, "GET"],
        [`/v1/files/${name}`, "DELETE"],
        [`/v1/files?after=${name}`, "GET"],
      ]) {
        const { status, body } = await get(api, path, method);
        expect([path, status, body.error.code]).toEqual([path, 404, "not_found"]);
      }
    }
    expect(leftovers()).toEqual([id]);
  });

  it("deletes once", async () => {
    const { id } = (await upload([file, purpose])).body;
    expect((await get(api, `/v1/files/${id}`, "DELETE")).body).toEqual({ id, object: "file", deleted: true });
    expect((await get(api, `/v1/files/${id}`, "DELETE")).status).toBe(404);
    expect(leftovers()).toEqual([]);
  });

  it("says which methods there are", async () => {
    const { status, headers } = await get(api, "/v1/files", "PUT");
    expect([status, headers.get("allow")]).toEqual([405, "POST, GET, HEAD"]);
    expect((await get(api, "/v1/files/x", "POST")).headers.get("allow")).toBe("GET, HEAD, DELETE");
  });
});

describe("beside the files", () => {
  it("their bytes are a metric", async () => {
    await upload([file, purpose]);
    expect(await api.metrics()).toContain('glm_relay_files_bytes{model="glm-test",purpose="batch"} 8\n');
  });

  it("the document tells the form and where it goes", async () => {
    const { paths } = (await get(api, "/openapi.json")).body;
    expect(Object.keys(paths["/v1/files"])).toEqual(["post", "get"]);
    const form = paths["/v1/files"].post.requestBody.content["multipart/form-data"].schema;
    expect(form.required).toEqual(["file", "purpose"]);
    expect(paths["/v1/files"].get.requestBody).toBeUndefined();
    expect(paths["/v1/files/{id}"].delete.parameters[0]).toMatchObject({ name: "id", in: "path" });
  });

  it("without a directory nothing is offered, and nobody tries again", async () => {
    await restartWithoutFiles();
    for (const answer of [
      await upload([file, purpose]),
      await get(api, "/v1/files"),
      await get(api, "/v1/files/x/content"),
      await get(api, "/v1/files/x", "DELETE"),
    ]) {
      expect(answer.status).toBe(501);
      expect(answer.headers.get("x-should-retry")).toBe("false");
      expect(answer.body.error).toMatchObject({
        code: "not_supported",
        message: expect.stringContaining("--data"),
      });
    }
  });
});
