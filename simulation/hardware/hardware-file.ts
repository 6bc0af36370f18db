/**
 * A description of hardware, as it stands in a file (docs/simulation.md): hosts with their processors, links, and
 * what is assumed otherwise than by default. Every field is checked, and none is ignored.
 */
import {
  type Assumptions,
  defaultAssumptions,
  type LinkSpec,
  localLink,
  networkLink,
} from "./assumptions.js";
import type { Device } from "./devices.js";
import { type Hardware, type Host, knownDevice, parseGpus, wrong } from "./hardware.js";

const maxHosts = 1_024;
const maxPerHost = 1_024;
const maxCores = 4_096;
const GB = 1e9;
const gigabit = 1e9 / 8;

type Fields = Record<string, unknown>;

export interface ReadHardware {
  hardware: Hardware;
  assumptions: Partial<Assumptions>;
}

/** @throws RelayError invalid_configuration naming field, value and what was expected. */
export function readHardware(value: unknown): ReadHardware {
  const root = object(value, "the file", ["hosts", "links", "pipelines", "stages", "assumptions"]);
  const list = root["hosts"];
  if (!Array.isArray(list) || list.length < 1 || list.length > maxHosts) {
    throw wrong("hosts", shown(list), `a list of 1 to ${maxHosts}`);
  }
  const links = object(root["links"] ?? {}, "links", ["withinHost", "betweenHosts"]);
  return {
    hardware: {
      hosts: list.map((host, index) => readHost(host, index)),
      withinHost: readLink(links["withinHost"], "links.withinHost", localLink),
      betweenHosts: readLink(links["betweenHosts"], "links.betweenHosts", networkLink),
      pipelines: number(root, "pipelines", "pipelines", 1, 64, 1),
      stages: root["stages"] === undefined ? null : number(root, "stages", "stages", 1, 1_000),
    },
    assumptions: readAssumptions(root["assumptions"]),
  };
}

function readHost(value: unknown, index: number): Host {
  const field = `hosts[${index}]`;
  const host = object(value, field, ["name", "gpus", "workers", "shared"]);
  const { name = `host${index}`, gpus, workers } = host;
  if (typeof name !== "string" || name === "") throw wrong(`${field}.name`, shown(name), "a text");
  const devices: Device[] = [];
  if (gpus !== undefined) {
    if (typeof gpus !== "string") throw wrong(`${field}.gpus`, shown(gpus), "a text such as 4x3090");
    devices.push(...parseGpus(gpus, `${field}.gpus`));
  }
  if (workers !== undefined) {
    if (!Array.isArray(workers)) throw wrong(`${field}.workers`, shown(workers), "a list");
    for (const [at, worker] of workers.entries())
      devices.push(...readWorkers(worker, `${field}.workers[${at}]`));
  }
  if (devices.length < 1 || devices.length > maxPerHost) {
    throw wrong(field, `${devices.length} processors`, `1 to ${maxPerHost}, in gpus or workers`);
  }
  return { name, devices: withShared(devices, host["shared"], `${field}.shared`) };
}

/** Some of a kind, that may differ from the data sheet. */
function readWorkers(value: unknown, field: string): Device[] {
  const names = ["device", "count", "memoryGiB", "reservedGiB", "bandwidthGBs", "teraflops"];
  const fields = object(value, field, names);
  if (typeof fields["device"] !== "string") {
    throw wrong(`${field}.device`, shown(fields["device"]), "the name of a device");
  }
  const known = knownDevice(fields["device"], `${field}.device`);
  const device: Device = {
    ...known,
    memoryBytes:
      number(fields, "memoryGiB", `${field}.memoryGiB`, 0.001, 1e6, known.memoryBytes / 2 ** 30) * 2 ** 30,
    reservedBytes:
      number(fields, "reservedGiB", `${field}.reservedGiB`, 0, 1e6, known.reservedBytes / 2 ** 30) * 2 ** 30,
    bandwidth: number(fields, "bandwidthGBs", `${field}.bandwidthGBs`, 0.1, 1e6, known.bandwidth / GB) * GB,
    flops: number(fields, "teraflops", `${field}.teraflops`, 1e-4, 1e6, known.flops / 1e12) * 1e12,
  };
  const count = number(fields, "count", `${field}.count`, 1, maxPerHost, 1);
  return Array.from({ length: Math.floor(count) }, () => device);
}

/** Memory bandwidth and arithmetic that all workers of a host divide. */
function withShared(devices: Device[], value: unknown, field: string): Device[] {
  if (value === undefined) return devices;
  const fields = object(value, field, ["bandwidthGBs", "teraflops", "cores"]);
  const shared = {
    bandwidth: number(fields, "bandwidthGBs", `${field}.bandwidthGBs`, 0.1, 1e6) * GB,
    flops: number(fields, "teraflops", `${field}.teraflops`, 1e-4, 1e6) * 1e12,
    cores: fields["cores"] === undefined ? null : number(fields, "cores", `${field}.cores`, 1, maxCores),
  };
  return devices.map((device) => ({ ...device, shared }));
}

function readLink(value: unknown, field: string, otherwise: LinkSpec): LinkSpec {
  const fields = object(value ?? {}, field, ["latencyUs", "gigabits"]);
  return {
    latencyUs: number(fields, "latencyUs", `${field}.latencyUs`, 0, 1e7, otherwise.latencyUs),
    bandwidth:
      number(fields, "gigabits", `${field}.gigabits`, 0.001, 1e5, otherwise.bandwidth / gigabit) * gigabit,
  };
}

function readAssumptions(value: unknown): Partial<Assumptions> {
  const names = Object.keys(defaultAssumptions) as (keyof Assumptions)[];
  const fields = object(value ?? {}, "assumptions", names);
  const read: Partial<Assumptions> = {};
  for (const name of names) {
    if (fields[name] === undefined) continue;
    const share = name.endsWith("Efficiency");
    read[name] = number(fields, name, `assumptions.${name}`, share ? 0.01 : 0, share ? 1 : 1e15);
  }
  return read;
}

function object(value: unknown, field: string, names: readonly string[]): Fields {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw wrong(field, shown(value), `an object with ${names.join(", ")}`);
  }
  for (const name of Object.keys(value)) {
    if (!names.includes(name))
      throw wrong(`a field of ${field}`, JSON.stringify(name), `one of ${names.join(", ")}`);
  }
  return value as Fields;
}

function number(
  fields: Fields,
  name: string,
  field: string,
  least: number,
  most: number,
  otherwise?: number,
): number {
  const value = fields[name] ?? otherwise;
  if (typeof value === "number" && value >= least && value <= most) return value;
  throw wrong(field, shown(value), `a number from ${least} to ${most}`);
}

const shown = (value: unknown): string =>
  value === undefined ? "missing" : JSON.stringify(value).slice(0, 60);
