/** Readers of option values. Commander puts flag and value in front of the message; these say what was expected. */

import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { availableParallelism, freemem } from "node:os";
import { InvalidArgumentError } from "commander";

/** A worker takes this share of the memory that is free; the rest is for caches and neighbours. */
export const memoryShare = 0.8;
/** The same of a GPU, which has neither: what CUDA takes and rounds up is planned for (docs/cuda.md). */
export const gpuMemoryShare = 0.9;

const sizeUnits: Record<string, number> = {
  "": 1,
  k: 1e3,
  m: 1e6,
  g: 1e9,
  t: 1e12,
  ki: 2 ** 10,
  mi: 2 ** 20,
  gi: 2 ** 30,
  ti: 2 ** 40,
};

/** A whole number in decimal digits within [min, max]. */
export function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    throw new InvalidArgumentError(`Expected a whole number from ${min} to ${max}.`);
  };
}

export const port = integer(0, 65_535);

/** "4GiB", "512MB", "1.5G" or plain bytes, as bytes. */
export function size(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?$/i.exec(text.trim());
  const unit = sizeUnits[(match?.[2] ?? "").toLowerCase()];
  const bytes = match && unit !== undefined ? Math.floor(Number(match[1]) * unit) : 0;
  if (bytes > 0 && Number.isSafeInteger(bytes)) return bytes;
  throw new InvalidArgumentError("Expected a size such as 512MiB, 4GiB or a number of bytes.");
}

/** The same, or 0. */
export function sizeOrNone(text: string): number {
  return text.trim() === "0" ? 0 : size(text);
}

/** What a worker computes on. Whether the GPU is there is seen where it is used. */
export function device(text: string): string {
  if (text === "auto" || text === "cpu" || /^cuda:\d{1,3}$/.test(text)) return text;
  throw new InvalidArgumentError("Expected auto, cpu or cuda:N, for example cuda:0.");
}

/** A name or an address to listen on, IPv6 with or without brackets. */
export function host(text: string): string {
  if (isIP(text) !== 0 || /^\[[0-9a-fA-F:.]+\]$/.test(text) || /^[A-Za-z0-9][A-Za-z0-9.-]{0,252}$/.test(text))
    return text;
  throw new InvalidArgumentError("Expected an address or a name, for example 127.0.0.1 or ::1.");
}

/** host:port, IPv6 in brackets. Whether the host is allowed is decided where it is used. */
export function address(text: string): string {
  const match = /^(\[[0-9a-fA-F:.]+\]|[^\s:[\]/]+):(\d{1,5})$/.exec(text);
  if (match && Number(match[2]) <= 65_535) return text;
  throw new InvalidArgumentError("Expected HOST:PORT, for example 127.0.0.1:9000.");
}

/** An http(s) address of a coordinator, without a trailing slash. */
export function httpUrl(text: string): string {
  const url = parseUrl(text);
  if (url && (url.protocol === "http:" || url.protocol === "https:")) {
    return `${url.origin}${url.pathname.replace(/\/+$/, "")}`;
  }
  throw new InvalidArgumentError("Expected an address such as http://127.0.0.1:8000.");
}

export function redisUrl(text: string): string {
  const url = parseUrl(text);
  if (url && (url.protocol === "redis:" || url.protocol === "rediss:") && url.hostname !== "") return text;
  throw new InvalidArgumentError("Expected an address such as redis://127.0.0.1:6379.");
}

/** A name that may stand in keys, file names and metric labels. */
export function name(text: string): string {
  if (/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(text)) return text;
  throw new InvalidArgumentError("Expected at most 64 letters, digits, dots, dashes or underscores.");
}

/** More than the kernel's mask of processors holds. */
const cpuMax = 1_023;

/** Processors as taskset takes them: "0-3,8" is 0, 1, 2, 3, 8. */
export function cpuList(text: string): number[] {
  const cpus = text.split(",").flatMap((part) => {
    const match = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part);
    const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])];
    return first <= last && last <= cpuMax
      ? Array.from({ length: last - first + 1 }, (_, i) => first + i)
      : [-1];
  });
  if (cpus.includes(-1) || new Set(cpus).size !== cpus.length) {
    throw new InvalidArgumentError(`Expected processors from 0 to ${cpuMax}, each once, such as 0-3,8.`);
  }
  return cpus;
}

export const dtypes = ["float32", "float16", "bfloat16"] as const;

/** Memory that this process and its children may still take, cgroup limits included. */
export function freeMemoryBytes(): number {
  return Math.min(freemem(), process.availableMemory());
}

export function coreCount(): number {
  return availableParallelism();
}

function parseUrl(text: string): URL | null {
  return URL.canParse(text) ? new URL(text) : null;
}

/** Processors that this process may use. */
export function allowedCpus(): number[] {
  return cpuList(/^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync("/proc/self/status", "utf8"))![1]!);
}
