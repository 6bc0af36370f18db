/** The image, built by whatever builder is there. Skips with the reason where none works or the base is out of reach. */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packageRoot } from "../../common/package.js";

const relayImage = "glm-relay:test";
/** A cold build on two cores. */
const buildLimitMs = 30 * 60_000;
const pullLimitMs = 5 * 60_000;
const base =
  process.env["GLM_RELAY_TEST_NODE_IMAGE"] ??
  /^ARG NODE_IMAGE=(\S+)$/m.exec(readFileSync(join(packageRoot, "deploy/Dockerfile"), "utf8"))![1]!;

type Builder = "docker" | "podman" | "buildah";

function run(program: string, args: string[], timeout: number) {
  return spawnSync(program, args, { encoding: "utf8", timeout, cwd: packageRoot, maxBuffer: 64 * 2 ** 20 });
}

/** The first builder that has the base image or can fetch it, else why there is none. */
function findBuilder(): { builder: Builder } | { missing: string } {
  const reasons: string[] = [];
  for (const builder of ["docker", "podman", "buildah"] as const) {
    if (run(builder, ["info"], 30_000).status !== 0) {
      reasons.push(`${builder} does not run`);
      continue;
    }
    if (run(builder, ["inspect", "--type", "image", base], 30_000).status === 0) return { builder };
    const pull = run(builder, ["pull", base], pullLimitMs);
    if (pull.status === 0) return { builder };
    reasons.push(`${builder} cannot pull ${base}: ${pull.stderr?.trim().split("\n").at(-1) ?? "too slow"}`);
  }
  return { missing: reasons.join("; ") };
}

const found = findBuilder();
if ("missing" in found) process.stderr.write(`skipped: the image: ${found.missing}\n`);

/** A program in a container of the image, as its own user, on a root that cannot be written to. */
function inside(builder: Builder, command: string[], image = relayImage) {
  if (builder !== "buildah") {
    const closed = ["--read-only", "--cap-drop", "ALL", "--network", "none", "--entrypoint", command[0]!];
    return run(builder, ["run", "--rm", ...closed, image, ...command.slice(1)], 120_000);
  }
  const container = run(builder, ["from", image], 120_000).stdout.trim();
  try {
    return run(builder, ["run", "--isolation", "chroot", container, "--", ...command], 120_000);
  } finally {
    run(builder, ["rm", container], 60_000);
  }
}

/** The command that builds, without what is built. */
function build(builder: Builder): string[] {
  return builder === "buildah"
    ? ["bud", "--format", "docker", "--isolation", "chroot", "--network", "host"]
    : ["build"];
}

describe.skipIf("missing" in found)("the image", () => {
  const { builder } = found as { builder: Builder };

  beforeAll(() => {
    const options = ["-f", "deploy/Dockerfile", "--build-arg", `NODE_IMAGE=${base}`, "-t", relayImage];
    const built = run(builder, [...build(builder), ...options, "."], buildLimitMs);
    expect(built.status, `${built.stdout}\n${built.stderr}`).toBe(0);
    const size = run(builder, ["images", "--format", "{{.Size}}", relayImage], 60_000).stdout.trim();
    process.stderr.write(`the image takes ${size}\n`);
  }, buildLimitMs);

  afterAll(() => {
    run(builder, ["rmi", relayImage], 120_000);
  });

  test("runs as nobody in particular, and the program starts", () => {
    expect(inside(builder, ["id", "-u"]).stdout.trim()).toBe("10001");
    const { version } = JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8"));
    const { stdout, stderr } = inside(builder, ["glm-relay", "--version"]);
    expect(stdout.trim(), stderr).toBe(version);
  });

  test("holds the engine and the demo model", () => {
    const script = `
      const { openModel } = await import("/opt/glm-relay/dist/checkpoint/index.js");
      const { engineInfo } = await import("/opt/glm-relay/dist/native/index.js");
      const { kernels } = engineInfo();
      const { shape } = await openModel("/opt/glm-relay/models/demo");
      console.log(JSON.stringify({ kernels, layers: shape.layerCount }));`;
    const { stdout, stderr } = inside(builder, ["node", "--input-type=module", "--eval", script]);
    expect(stdout, stderr).toMatch(/^\{"kernels":"\w.*","layers":[1-9]/);
  });

  test(
    "with the CUDA library in it, the engine opens the library and finds no driver",
    (context) => {
      const cudaImage = `${relayImage}-cuda`;
      const options = ["-f", "deploy/Dockerfile.cuda", "--build-arg", `NODE_IMAGE=${base}`];
      const relay = builder === "docker" ? relayImage : `localhost/${relayImage}`;
      const args = [
        ...build(builder),
        ...options,
        "--build-arg",
        `RELAY_IMAGE=${relay}`,
        "-t",
        cudaImage,
        ".",
      ];
      const built = run(builder, args, buildLimitMs);
      // PyPI out of reach is no fault of the file.
      context.skip(built.stdout.includes("PyPI did not give nvcc"), "PyPI did not give nvcc");
      expect(built.status, `${built.stdout}\n${built.stderr}`).toBe(0);
      const script = `
      const { loadAddon, cudaLibraryFile } = await import("/opt/glm-relay/dist/native/addon-loader.js");
      try { loadAddon().cudaDevices(cudaLibraryFile()); } catch ({ message }) { console.log(message); }`;
      try {
        const command = ["node", "--input-type=module", "--eval", script];
        const { stdout, stderr } = inside(builder, command, cudaImage);
        expect(stdout, stderr).toMatch(/^the GPU failed while being looked for: /);
        expect(inside(builder, ["id", "-u"], cudaImage).stdout.trim()).toBe("10001");
      } finally {
        run(builder, ["rmi", cudaImage], 120_000);
      }
    },
    buildLimitMs,
  );

  test("has no compiler, no sources and no tests in it", () => {
    const script =
      "command -v g++ cmake; find /opt/glm-relay -name '*.cc' -o -path '*/dist/test' -o -path '*/node_modules/vitest'";
    expect(inside(builder, ["sh", "-c", script]).stdout.trim()).toBe("");
  });
});
