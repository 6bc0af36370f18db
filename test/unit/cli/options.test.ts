import { describe, expect, it } from "vitest";
import { address, device, httpUrl, integer, redisUrl, size, sizeOrNone } from "../../../cli/options.js";
import { formatBytes } from "../../../cli/text.js";

describe("option values", () => {
  it("reads sizes in decimal and binary units", () => {
    expect(size("4GiB")).toBe(4 * 2 ** 30);
    expect(size("512 MB")).toBe(512e6);
    expect(size("1.5g")).toBe(1.5e9);
    expect(size("1048576")).toBe(1048576);
    expect([sizeOrNone("0"), sizeOrNone("256MiB")]).toEqual([0, 256 * 2 ** 20]);
    expect(() => sizeOrNone("0MiB")).toThrow(/Expected a size/);
    for (const bad of ["", "0", "-1", "4 gallons", "GiB", "1e9", "9999999TiB"]) {
      expect(() => size(bad), bad).toThrow(/Expected a size/);
    }
  });

  it("reads whole numbers within bounds only", () => {
    expect(integer(1, 9)("9")).toBe(9);
    for (const bad of ["0", "10", "1.5", "", "0x1", "1e0", " 1", "99999999999999999999"]) {
      expect(() => integer(1, 9)(bad), bad).toThrow(/from 1 to 9/);
    }
  });

  it("tells addresses from other text", () => {
    for (const good of ["127.0.0.1:0", "[::1]:9000", "worker-3.local:65535"])
      expect(address(good)).toBe(good);
    for (const bad of ["127.0.0.1", ":80", "a:65536", "::1:80", "http://a:80"]) {
      expect(() => address(bad), bad).toThrow(/HOST:PORT/);
    }
    expect(httpUrl("http://127.0.0.1:8000/")).toBe("http://127.0.0.1:8000");
    expect(() => httpUrl("127.0.0.1:8000")).toThrow(/http/);
    expect(redisUrl("redis://:secret@host:6379/2")).toBe("redis://:secret@host:6379/2");
    expect(() => redisUrl("http://host")).toThrow(/redis/);
  });

  it("knows what a worker may compute on", () => {
    expect(["auto", "cpu", "cuda:0", "cuda:12"].map(device)).toEqual(["auto", "cpu", "cuda:0", "cuda:12"]);
    for (const bad of ["", "gpu", "cuda", "cuda:", "cuda:-1", "cuda:1234", "CUDA:0"]) {
      expect(() => device(bad), bad).toThrow(/Expected auto, cpu or cuda:N/);
    }
  });

  it("writes bytes for people", () => {
    expect([0, 1023, 1024, 1.5 * 2 ** 20, 250 * 2 ** 30].map(formatBytes)).toEqual([
      "0 B",
      "1023 B",
      "1.0 KiB",
      "1.5 MiB",
      "250 GiB",
    ]);
  });
});
