/**
 * As much of a Kubernetes API server as Helm needs to install, upgrade and uninstall a release: discovery, and
 * objects in memory. Nothing is validated and nothing acts on an object.
 */
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
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
/** Of a release with all its objects. */
const maxBodyBytes = 4 * 2 ** 20;

export class FakeApiServer {
  readonly #server: Server;
  /** By path. */
  readonly #objects = new Map<string, any>();
  #version = 0;

  private constructor() {
    this.#server = createServer((request, response) => void this.#answer(request, response));
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

  /** Null when there is none. */
  object(kind: string, name: string): any {
    return [...this.#objects.values()].find((each) => each.kind === kind && each.metadata.name === name) ?? null;
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.#server.close(() => resolve());
      this.#server.closeAllConnections();
    });
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url!, "http://fake");
    let body = "";
    for await (const part of request) {
      body += part;
      if (body.length > maxBodyBytes) throw new Error("a body that is larger than any of Helm's");
    }
    const [status, answer] = this.#handle(request.method!, url, body);
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify(answer));
  }

  #handle(method: string, url: URL, body: string): [number, unknown] {
    const path = url.pathname.replace(/\/$/, "");
    if (method === "GET") {
      const page = discovery(path);
      if (page !== null) return [200, page];
    }
    const parts = /^\/(?:api|apis)\/(.*?v1)\/(?:namespaces\/[^/]+\/)?([^/]+)(?:\/([^/]+))?$/.exec(path);
    const known = groups[parts?.[1] ?? ""]?.find(({ name }) => name === parts![2]);
    if (parts === null || known === undefined) return failure(404, "NotFound", `no ${path}`);
    const [, apiVersion, , name] = parts;
    const there = this.#objects.get(path);
    switch (method) {
      case "POST": {
        const object = JSON.parse(body);
        const at = `${path}/${object.metadata.name}`;
        if (this.#objects.has(at)) return failure(409, "AlreadyExists", `${at} is there`);
        return [201, this.#store(at, { apiVersion, kind: known.kind, ...object })];
      }
      case "GET":
        if (name === undefined) return [200, this.#list(path, known.kind, apiVersion!, url)];
        return there === undefined ? failure(404, "NotFound", `no ${path}`) : [200, there];
      case "PUT":
        return [200, this.#store(path, JSON.parse(body))];
      case "PATCH":
        if (there === undefined) return failure(404, "NotFound", `no ${path}`);
        return [200, this.#store(path, patched(there, JSON.parse(body)))];
      case "DELETE":
        if (!this.#objects.delete(path)) return failure(404, "NotFound", `no ${path}`);
        return [200, { kind: "Status", apiVersion: "v1", status: "Success" }];
      default:
        return failure(405, "MethodNotAllowed", method);
    }
  }

  #store(path: string, object: any): any {
    const metadata = { uid: randomUUID(), ...object.metadata, resourceVersion: `${++this.#version}` };
    const stored = { ...object, metadata };
    this.#objects.set(path, stored);
    return stored;
  }

  #list(path: string, kind: string, apiVersion: string, url: URL): unknown {
    const wanted = (url.searchParams.get("labelSelector") ?? "").split(",").filter((term) => term !== "");
    const items = [...this.#objects]
      .filter(([at]) => at.startsWith(`${path}/`))
      .map(([, object]) => object)
      .filter(({ metadata }) =>
        wanted.every((term) => {
          const [label, value] = term.split("=") as [string, string];
          return metadata.labels?.[label] === value;
        }),
      );
    return { kind: `${kind}List`, apiVersion, metadata: { resourceVersion: `${this.#version}` }, items };
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

function failure(code: number, reason: string, message: string): [number, unknown] {
  return [code, { kind: "Status", apiVersion: "v1", status: "Failure", reason, message, code }];
}

/** Maps are merged, null deletes, everything else is replaced: enough for what an upgrade changes here. */
function patched(object: any, patch: any): any {
  if (typeof object !== "object" || object === null || Array.isArray(object)) return patch;
  if (typeof patch !== "object" || patch === null || Array.isArray(patch)) return patch;
  const result = { ...object };
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete result[key];
    else result[key] = patched(object[key], value);
  }
  return result;
}
