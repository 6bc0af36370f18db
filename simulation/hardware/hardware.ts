/** The machines of a simulated cluster: hosts, what computes in them, and what lies between them. */
import { RelayError } from "../../common/errors.js";
import { maxWorkers } from "../../coordinator/membership/members.js";
import { type LinkSpec, localLink, networkLink } from "./assumptions.js";
import { type Device, deviceNames, devices } from "./devices.js";

export interface Host {
  name: string;
  /** One worker each. */
  devices: Device[];
}

export interface Hardware {
  hosts: Host[];
  /** Between workers of one host, and of two. */
  withinHost: LinkSpec;
  betweenHosts: LinkSpec;
  /** Each holds the model once. */
  pipelines: number;
  /** Of each; workers beyond are spares. null: all workers, divided evenly. */
  stages: number | null;
}

/** @throws RelayError invalid_configuration for a device that is not known. */
export function knownDevice(name: string, field: string): Device {
  const device = devices.get(name.toLowerCase());
  if (device !== undefined) return device;
  throw wrong(field, JSON.stringify(name), `one of ${deviceNames.join(", ")}`);
}

/**
 * "4x3090", or several such parts with a comma between them, on one host.
 * @throws RelayError invalid_configuration
 */
export function parseGpus(text: string, field = "--gpus"): Device[] {
  return text.split(",").flatMap((part) => {
    const match = /^(?:(\d{1,4})x)?([a-z0-9-]+)$/i.exec(part.trim());
    if (match === null) throw wrong(field, JSON.stringify(text), "COUNTxNAME, for example 4x3090");
    const count = Number(match[1] ?? 1);
    if (count < 1 || count > maxWorkers) throw wrong(field, String(count), `1 to ${maxWorkers} of a kind`);
    const device = knownDevice(match[2]!, field);
    return Array.from({ length: count }, () => device);
  });
}

export function oneHost(all: Device[], pipelines = 1, stages: number | null = null): Hardware {
  return {
    hosts: [{ name: "host0", devices: all }],
    withinHost: localLink,
    betweenHosts: networkLink,
    pipelines,
    stages,
  };
}

/** @throws RelayError invalid_configuration when workers do not divide evenly, are too few, or too many. */
export function stagesOf({ hosts, pipelines, stages }: Hardware): number {
  const count = hosts.reduce((sum, host) => sum + host.devices.length, 0);
  if (count < 1 || count > maxWorkers) throw wrong("workers", String(count), `1 to ${maxWorkers}`);
  if (stages === null && count % pipelines !== 0) {
    throw wrong("pipelines", String(pipelines), `a number that divides the ${count} workers evenly`);
  }
  const each = stages ?? count / pipelines;
  if (each * pipelines <= count) return each;
  throw wrong(
    "stages",
    String(each),
    `at most ${Math.floor(count / pipelines)} for each of ${pipelines} pipelines`,
  );
}

export function wrong(field: string, value: string, expected: string): RelayError {
  return new RelayError("invalid_configuration", `${field} is ${value}: expected ${expected}`);
}
