/** The services of compose.yaml that are ours or Redis, as processes of this machine (local-containers.ts). */
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { composeFile, readCompose } from "./compose.js";
import { freeAddresses, LocalContainer } from "./local-containers.js";

const ports = [6379, 8000, 9000, 9001, 9200];

export class LocalCompose {
  readonly containers = new Map<string, LocalContainer>();
  readonly #directory = mkdtempSync(join(tmpdir(), "glm-relay-compose-"));
  readonly #healthChecks = new Map<string, readonly string[]>();

  static async start(): Promise<LocalCompose> {
    const local = new LocalCompose();
    await local.#make();
    for (const container of local.containers.values()) container.start();
    return local;
  }

  container(name: string): LocalContainer {
    const container = this.containers.get(name);
    if (container === undefined) throw new Error(`no service ${name}`);
    return container;
  }

  async healthy(name: string): Promise<boolean> {
    return (await this.container(name).exec(this.#healthChecks.get(name)!)) === 0;
  }

  async stop(): Promise<void> {
    await Promise.all([...this.containers.values()].map((container) => container.stop(5_000)));
    rmSync(this.#directory, { recursive: true, force: true });
  }

  async #make(): Promise<void> {
    const services = Object.entries(readCompose().services).filter(([name]) =>
      /^(redis|coordinator|worker-\d)$/.test(name),
    );
    const addresses = await freeAddresses(services.length, ports);
    const hosts = new Map(services.map(([name], index) => [name, addresses[index]!]));
    for (const [index, [name, service]] of services.entries()) {
      const address = addresses[index]!;
      const mounts = new Map(
        (service.volumes ?? []).map((volume) => {
          const [source, target] = volume.split(":") as [string, string];
          return [
            target,
            source.startsWith(".") ? resolve(dirname(composeFile), source) : this.#volume(source),
          ];
        }),
      );
      mounts.set("/tmp", this.#volume(`tmp-${name}`));
      // Redis listens on all addresses of its container; here it has one.
      const command =
        name === "redis" ? [...service.command!, "--bind", address] : ["glm-relay", ...service.command!];
      this.containers.set(
        name,
        new LocalContainer(
          { name, address, command, env: service.environment ?? {}, mounts, workingDirectory: "/data" },
          hosts,
        ),
      );
      // The image's own check, where the service has none.
      const check = service.healthcheck?.test.slice(1) ?? [
        "node",
        "/opt/glm-relay/deploy/healthcheck.mjs",
        "/livez",
      ];
      this.#healthChecks.set(name, name === "redis" ? [check[0]!, "-h", address, ...check.slice(1)] : check);
    }
  }

  #volume(name: string): string {
    const directory = join(this.#directory, name);
    mkdirSync(directory, { recursive: true });
    return directory;
  }
}
