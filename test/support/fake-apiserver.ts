/**
 * As much of a Kubernetes API server as Helm reads before it installs: discovery, and the objects that are there.
 * Nothing can be written.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import type { KubernetesObject } from "./chart.js";
import { kubeVersion } from "./helm.js";

interface ApiResource {
  name: string;
  kind: string;
  namespaced: boolean;
}

const resource = (name: string, kind: string, namespaced = true): ApiResource => ({ name, kind, namespaced });
const groups: Record<string, ApiResource[]> = {
  v1: [
    resource("configmaps", "ConfigMap"),
    resource("namespaces", "Namespace", false),
    resource("persistentvolumeclaims", "PersistentVolumeClaim"),
    resource("pods", "Pod"),
    resource("secrets", "Secret"),
    resource("serviceaccounts", "ServiceAccount"),
    resource("services", "Service"),
  ],
  "apps/v1": [resource("deployments", "Deployment"), resource("statefulsets", "StatefulSet")],
  "networking.k8s.io/v1": [resource("networkpolicies", "NetworkPolicy")],
  "policy/v1": [resource("poddisruptionbudgets", "PodDisruptionBudget")],
};
const verbs = ["create", "delete", "get", "list", "patch", "update"];

export class FakeApiServer {
  readonly #server: Server;
  /** What is in the cluster. */
  objects: KubernetesObject[] = [];

  private constructor() {
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  static async start(): Promise<FakeApiServer> {
    const fake = new FakeApiServer();
    await new Promise<void>((resolve) => fake.#server.listen(0, "127.0.0.1", resolve));
    return fake;
  }

  get kubeconfig(): string {
    const server = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
    return JSON.stringify({
      apiVersion: "v1",
      kind: "Config",
      "current-context": "fake",
      contexts: [{ name: "fake", context: { cluster: "fake", user: "fake" } }],
      clusters: [{ name: "fake", cluster: { server } }],
      users: [{ name: "fake", user: {} }],
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  #answer({ method, url }: IncomingMessage, response: ServerResponse): void {
    const [status, body] =
      method === "GET" ? this.#get(new URL(url!, "http://fake").pathname) : failure(405, "MethodNotAllowed");
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(body));
  }

  #get(path: string): [number, unknown] {
    const page = discovery(path);
    if (page !== null) return [200, page];
    const [, apiVersion, namespace, plural, name] =
      /^\/(?:api|apis)\/(.*?v1)\/(?:namespaces\/([^/]+)\/)?([^/]+)(?:\/([^/]+))?$/.exec(path) ?? [];
    const kind = groups[apiVersion ?? ""]?.find((known) => known.name === plural)?.kind;
    if (kind === undefined) return failure(404, "NotFound");
    const there = this.objects.filter(
      (object) => object.kind === kind && object.metadata.namespace === namespace,
    );
    if (name === undefined) return [200, { kind: `${kind}List`, apiVersion, metadata: {}, items: [] }];
    const found = there.find(({ metadata }) => metadata.name === name);
    return found === undefined ? failure(404, "NotFound") : [200, found];
  }
}

function discovery(path: string): unknown {
  const version = (groupVersion: string) => ({ groupVersion, version: "v1" });
  if (path === "/version") {
    const [major, minor] = kubeVersion.split(".");
    return { major, minor, gitVersion: `v${kubeVersion}` };
  }
  if (path === "/api") return { kind: "APIVersions", versions: ["v1"] };
  if (path === "/apis") {
    const named = Object.keys(groups).filter((groupVersion) => groupVersion.includes("/"));
    return {
      kind: "APIGroupList",
      apiVersion: "v1",
      groups: named.map((groupVersion) => ({
        name: groupVersion.split("/")[0],
        versions: [version(groupVersion)],
        preferredVersion: version(groupVersion),
      })),
    };
  }
  const groupVersion = /^\/(?:api|apis)\/(.*)$/.exec(path)?.[1] ?? "";
  const resources = groups[groupVersion];
  if (resources === undefined) return null;
  const listed = resources.map((each) => ({ ...each, singularName: each.kind.toLowerCase(), verbs }));
  return { kind: "APIResourceList", apiVersion: "v1", groupVersion, resources: listed };
}

function failure(code: number, reason: string): [number, unknown] {
  return [code, { kind: "Status", apiVersion: "v1", status: "Failure", reason, message: reason, code }];
}
