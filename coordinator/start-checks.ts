/** What can be seen to be wrong with a coordinator's options before it works with them. */
import { requireAdvertisable } from "../common/address.js";
import { RelayError } from "../common/errors.js";
import { requireTrustedAddress, requireTrustedApi, type WorkerTrust } from "../common/tls.js";
import { maxWorkers } from "./membership/members.js";
import type { LayerRange } from "./placement/cut.js";

export interface Addresses extends WorkerTrust {
  host: string;
  insecureNoAuth?: boolean | undefined;
  clusterListen: string;
  clusterAdvertise?: string | undefined;
}

/** @throws RelayError invalid_configuration for an address that may not be used, or nobody can dial. */
export function requireAllowedAddresses(options: Addresses, hasKeys: boolean): void {
  const { host, insecureNoAuth = false, clusterListen, clusterAdvertise } = options;
  requireTrustedApi(host, { hasKeys, insecureNoAuth });
  requireTrustedAddress(clusterListen, options);
  requireAdvertisable(clusterListen, clusterAdvertise, {
    listen: "--cluster-listen",
    advertise: "--cluster-advertise",
  });
}

export function requireStageCount(stages: number, layerCount: number): void {
  if (Number.isInteger(stages) && stages >= 1 && stages <= layerCount) return;
  throw new RelayError(
    "invalid_configuration",
    `--stages ${stages}: the model has ${layerCount} layers, expected 1 to ${layerCount} stages`,
  );
}

export function requireWorkerCount(pipelines: number, stages: number): void {
  if (pipelines * stages <= maxWorkers) return;
  throw new RelayError(
    "invalid_configuration",
    `--pipelines ${pipelines} of --stages ${stages} need ${pipelines * stages} workers: expected at most ${maxWorkers}`,
  );
}

/** A cut by hand must end where the model ends, which nobody knew before it was opened. */
export function requireAllLayers(cut: readonly LayerRange[] | undefined, layerCount: number): void {
  const layerEnd = cut?.at(-1)?.layerEnd ?? layerCount;
  if (layerEnd === layerCount) return;
  throw new RelayError(
    "invalid_configuration",
    `--layers ends with layer ${layerEnd - 1}: the model has ${layerCount} layers, expected the last range to end with ${layerCount - 1}`,
  );
}
