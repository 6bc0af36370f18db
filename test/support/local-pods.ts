/**
 * A kubelet as far as our manifests need one: makes the pods that Deployments and StatefulSets ask for, their
 * volumes, environment and names, and runs their containers as processes of this machine (local-containers.ts).
 * Services are the addresses of the pods that they select.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type KubernetesObject, matches, type PodTemplate, podTemplates } from "./chart.js";
import { freeAddresses, LocalContainer, localText } from "./local-containers.js";

export interface LocalPod {
  name: string;
  address: string;
  spec: any;
  container: LocalContainer;
}

export class LocalPods {
  readonly pods: LocalPod[] = [];
  readonly #objects: readonly KubernetesObject[];
  readonly #directory = mkdtempSync(join(tmpdir(), "glm-relay-pods-"));
  readonly #hosts = new Map<string, string>();

  private constructor(objects: readonly KubernetesObject[]) {
    this.#objects = objects;
  }

  /** Makes all pods and starts all but those of Helm's tests, at the same time. */
  static async start(objects: readonly KubernetesObject[]): Promise<LocalPods> {
    const made = new LocalPods(objects);
    await made.#make();
    for (const pod of made.pods) if (pod.spec.restartPolicy !== "Never") pod.container.start();
    return made;
  }

  pod(name: string): LocalPod {
    const found = this.pods.find((pod) => pod.name.endsWith(name));
    if (found === undefined) throw new Error(`no pod ${name} among ${this.pods.map((pod) => pod.name)}`);
    return found;
  }

  /** host:port behind the port of a Service that is named so. */
  service(name: string, portName: string): string {
    const service = this.#objects.find(
      (object) => object.kind === "Service" && object.metadata.name === name,
    );
    const port = service?.["spec"].ports.find((entry: any) => entry.name === portName);
    const address = this.#hosts.get(name);
    if (port === undefined || address === undefined) throw new Error(`no Service ${name} with ${portName}`);
    const pod = this.pods.find((candidate) => candidate.address === address)!;
    return `${address}:${portOf(pod.spec.containers[0], port.targetPort)}`;
  }

  /** Asks once what the kubelet asks. */
  async probe(pod: LocalPod, which: "startupProbe" | "livenessProbe" | "readinessProbe"): Promise<boolean> {
    const [container] = pod.spec.containers;
    const { httpGet, exec, timeoutSeconds } = container[which];
    if (exec !== undefined) return (await pod.container.exec(exec.command)) === 0;
    const url = `http://${pod.address}:${portOf(container, httpGet.port)}${httpGet.path}`;
    return fetch(url, { signal: AbortSignal.timeout(timeoutSeconds * 1000) }).then(
      async (response) => {
        await response.text();
        return response.status >= 200 && response.status < 400;
      },
      () => false,
    );
  }

  async stop(): Promise<void> {
    await Promise.all(this.pods.map((pod) => pod.container.stop(5_000)));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #make(): Promise<void> {
    const wanted = podTemplates(this.#objects).flatMap((template) =>
      Array.from({ length: template.replicas }, (_, index) => ({ template, name: nameOf(template, index) })),
    );
    const ports = wanted.flatMap(({ template }) =>
      template.spec.containers.flatMap(({ ports = [] }: any) => ports.map((port: any) => port.containerPort)),
    );
    const addresses = await freeAddresses(wanted.length, [...new Set<number>(ports)]);
    for (const { kind, metadata, spec } of this.#objects as any[]) {
      if (kind !== "Service") continue;
      const index = wanted.findIndex(({ template }) => matches(spec.selector, template.metadata.labels));
      if (index >= 0) this.#hosts.set(metadata.name, addresses[index]!);
    }
    for (const [index, { template, name }] of wanted.entries()) {
      this.pods.push(this.#makePod(template, name, addresses[index]!));
    }
  }

  #makePod({ object, spec }: PodTemplate, name: string, address: string): LocalPod {
    const [container] = spec.containers;
    const volumes = [
      ...(spec.volumes ?? []),
      ...(object["spec"].volumeClaimTemplates ?? []).map(({ metadata }: any) => ({
        name: metadata.name,
        persistentVolumeClaim: { claimName: `${metadata.name}-${name}` },
      })),
    ];
    const mounts = new Map<string, string>();
    const files: (() => void)[] = [];
    for (const { name: volumeName, mountPath, subPath = "" } of container.volumeMounts ?? []) {
      const volume = volumes.find((candidate: any) => candidate.name === volumeName);
      if (volume === undefined) throw new Error(`${name} mounts "${volumeName}", which is no volume of it`);
      const directory = join(this.#directory, placeOf(volume, name), subPath);
      mkdirSync(directory, { recursive: true });
      mounts.set(mountPath, directory);
      for (const [file, content] of this.#contentOf(volume)) {
        files.push(() => {
          mkdirSync(dirname(join(directory, file)), { recursive: true });
          writeFileSync(join(directory, file), localText(content, { address, mounts }, this.#hosts));
        });
      }
    }
    // Only now are all mounts known, and with them what paths in configuration files mean.
    for (const write of files) write();
    const env = environmentOf(container, name, address);
    const command = [...container.command, ...container.args].map((text: string) => expanded(text, env));
    return {
      name,
      address,
      spec,
      container: new LocalContainer({ name, address, command, env, mounts }, this.#hosts),
    };
  }

  #contentOf({ secret, configMap }: any): [string, string][] {
    if (secret === undefined && configMap === undefined) return [];
    const name = secret?.secretName ?? configMap.name;
    const source = this.#objects.find(
      ({ kind, metadata }) => kind === (secret ? "Secret" : "ConfigMap") && metadata.name === name,
    );
    if (source === undefined) throw new Error(`no ${secret ? "Secret" : "ConfigMap"} ${name}`);
    const data: Record<string, string> = source["data"];
    const items = (secret ?? configMap).items ?? Object.keys(data).map((key) => ({ key, path: key }));
    return items.map(({ key, path }: any) => {
      if (data[key] === undefined) throw new Error(`${name} has no "${key}"`);
      return [path, secret ? Buffer.from(data[key], "base64").toString() : data[key]];
    });
  }
}

/** Claims outlive their pods; everything else is the pod's own. */
function placeOf({ name, persistentVolumeClaim }: any, pod: string): string {
  return persistentVolumeClaim ? join("claims", persistentVolumeClaim.claimName) : join("pods", pod, name);
}

function nameOf({ object }: PodTemplate, index: number): string {
  const { kind, metadata } = object;
  if (kind === "StatefulSet") return `${metadata.name}-${index}`;
  return kind === "Pod" ? metadata.name : `${metadata.name}-7d4b9c-${index}`;
}

function environmentOf(container: any, name: string, address: string): Record<string, string> {
  const fields: Record<string, string> = { "metadata.name": name, "status.podIP": address };
  return Object.fromEntries(
    (container.env ?? []).map(({ name: variable, value, valueFrom }: any) => {
      const text = value ?? fields[valueFrom?.fieldRef?.fieldPath];
      if (text === undefined) throw new Error(`${name}: where ${variable} comes from is not known here`);
      return [variable, text];
    }),
  );
}

/** $(NAME) of a variable of the container; anything else stays, as in Kubernetes. */
function expanded(text: string, env: Record<string, string>): string {
  return text.replace(/\$\(([A-Za-z_][A-Za-z0-9_]*)\)/g, (whole, name: string) => env[name] ?? whole);
}

export function portOf(container: any, port: string | number): number {
  if (typeof port === "number") return port;
  const found = container.ports.find((entry: any) => entry.name === port);
  if (found === undefined) throw new Error(`${container.name} has no port "${port}"`);
  return found.containerPort;
}
