import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command } from "commander";
import { afterAll, describe, expect, it, vi } from "vitest";
import { parse } from "yaml";
import { addSimulateCommand } from "../../cli/simulate.js";
import { publishedNames } from "../../models/published.js";
import { defaultAssumptions } from "../../simulation/hardware/assumptions.js";
import { readHardware } from "../../simulation/hardware/hardware-file.js";
import { profileFormat } from "../../simulation/hardware/profile.js";

const directory = mkdtempSync(join(tmpdir(), "glm-relay-simulate-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** What the command prints. */
async function run(...args: string[]): Promise<string> {
  const program = new Command().exitOverride().configureOutput({ writeErr: () => {}, writeOut: () => {} });
  addSimulateCommand(program);
  let text = "";
  const spy = vi.spyOn(process.stdout, "write").mockImplementation((chunk) => {
    text += String(chunk);
    return true;
  });
  try {
    await program.parseAsync(["simulate", ...args], { from: "user" });
  } finally {
    spy.mockRestore();
  }
  return text;
}

const small = ["--model", "chatglm2-6b", "--gpus", "2x3090", "--quantization", "int4"];
const few = ["--concurrency", "2", "--requests", "4", "--prompt-tokens", "32", "--reply-tokens", "16"];

function file(name: string, text: string): string {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
}

describe("glm-relay simulate", () => {
  it("prints figures and what they rest on", async () => {
    const text = await run(...small, ...few);
    expect(text).toMatch(/^model {8}ChatGLM2-6B, float16, weights int4-g32-search/);
    expect(text).toMatch(/requests {5}4 answered/);
    expect(text).toMatch(/throughput {3}\d+\.\d tokens\/s/);
    expect(text).toMatch(/TTFT {9}p50 \d/);
    expect(text).toContain("70.0 % of nominal bandwidth and 50.0 % of nominal arithmetic are reached");
  });

  it("prints the same as JSON", async () => {
    const json = JSON.parse(
      await run(...small, ...few, "--json", "--kv", "int8", "--class", "interactive:0.5"),
    );
    expect(json).toMatchObject({
      requests: 4,
      failed: 0,
      tokens: 64,
      assumptions: { bandwidthEfficiency: 0.7 },
      model: { precision: { kvType: "int8" } },
      stages: [{ layerBegin: 0 }, { layerEnd: 28 }],
    });
    expect(json.bubbleRatio).toBeCloseTo(1 - json.utilisation, 12);
    expect(Object.keys(json.classes).length).toBeGreaterThan(0);
  });

  it("draws a timeline", async () => {
    const svg = join(directory, "stages.svg");
    await run(...small, ...few, "--svg", svg, "--svg-window", "0s..500ms");
    const text = readFileSync(svg, "utf8");
    expect(text).toMatch(/^<svg [^>]*>/);
    expect(text.trimEnd()).toMatch(/<\/svg>$/);
    for (const kind of ["prefill", "decode", "bubble"]) expect(text).toContain(`class="${kind}"`);
    expect(text).toContain("worker1 3090");
    // Every element that is opened is closed.
    const opened = text.match(/<(?!\/)[a-z]+[^>]*[^/]>/g)!.length;
    expect(text.match(/<\/[a-z]+>/g)).toHaveLength(opened);
  });

  it("reads hardware from YAML, and sizes from a batch", async () => {
    const hardware = file(
      "boxes.yaml",
      "hosts:\n  - name: a\n    gpus: 1x3090\n  - workers:\n      - {device: 2080ti, memoryGiB: 22}\n" +
        "links:\n  betweenHosts: {latencyUs: 100, gigabits: 25}\nassumptions: {loadBandwidth: 1000000000}\n",
    );
    const line = (id: number) =>
      JSON.stringify({
        custom_id: `l${id}`,
        method: "POST",
        url: "/v1/completions",
        body: { prompt: [1, 2, 3, 4], max_tokens: 7 },
      });
    const input = file("batch.jsonl", `${[1, 2, 3].map(line).join("\n")}\n`);
    const args = [
      "--model",
      "chatglm2-6b",
      "--hardware",
      hardware,
      "--quantization",
      "int4",
      "--input",
      input,
    ];
    const json = JSON.parse(await run(...args, "--json"));
    expect(json).toMatchObject({ requests: 3, tokens: 21, assumptions: { loadBandwidth: 1e9 } });
    expect(json.stages.map(({ device }: { device: string }) => device)).toEqual(["3090", "2080ti"]);
    expect(json.classes).toHaveProperty("batch");

    const refused: [string, RegExp][] = [
      [`\ufeff${line(1)}\r\n\r\n{"custom_id":"x"}`, /bad\.jsonl:3: expected \{"custom_id"/],
      [`${line(1)}\n[]\n`, /bad\.jsonl:2: expected/],
      ["{", /bad\.jsonl:1: expected/],
      [" \n\n", /bad\.jsonl holds no requests/],
    ];
    for (const [content, message] of refused) {
      const bad = [...args.slice(0, -1), file("bad.jsonl", content)];
      await expect(run(...bad)).rejects.toThrow(message);
    }
    const none = [...args.slice(0, -1), "/nowhere.jsonl"];
    await expect(run(...none)).rejects.toThrow(/cannot read \/nowhere.jsonl: ENOENT/);
  });

  it.each([
    [["--gpus", "4x9090"], /--gpus is "9090": expected one of 2080ti, 3090/],
    [["--gpus", "x"], /--gpus is "x": expected one of/],
    [["--gpus", "4 3090"], /expected COUNTxNAME/],
    [
      ["--gpus", "3x3090", "--pipelines", "2"],
      /pipelines is 2: expected a number that divides the 3 workers/,
    ],
    [["--gpus", "1x3090", "--rate", "1", "--concurrency", "2"], /'--rate' stands beside --concurrency/],
    [[], /expected one of --gpus and --hardware/],
    [["--gpus", "2x3090", "--kill", "worker5@1s"], /--kill is worker5: expected worker0 to worker1/],
    [["--gpus", "2x3090", "--kill", "worker5"], /Expected workerN@TIME/],
    [["--gpus", "2x3090", "--reply-tokens", "9..3"], /Expected LEAST..MOST/],
    [
      ["--gpus", "2x3090", "--requests", "1", "--svg", "/nowhere/a.svg"],
      /\/nowhere\/a.svg cannot be written: ENOENT/,
    ],
    [["--gpus", "2x3090", "--profile", "/nowhere.json"], /\/nowhere.json cannot be read: ENOENT/],
  ])("refuses %j", async (args, message) => {
    await expect(run("--model", "chatglm2-6b", ...args)).rejects.toThrow(message);
  });

  it("refuses a model that nobody knows, and one that does not fit", async () => {
    await expect(run("--model", "glm-5000b", "--gpus", "1x3090")).rejects.toThrow(
      `neither a directory nor a published model: expected a directory or one of ${publishedNames.join(", ")}`,
    );
    await expect(run("--model", "glm-130b", "--gpus", "2x3090")).rejects.toThrow(/lacks \d+ more/);
  });

  it.each([
    [{}, "hosts is missing: expected a list of 1 to 1024"],
    [{ hosts: [{}] }, "hosts[0] is 0 processors"],
    [
      { hosts: [{ gpus: "1x3090", colour: 1 }] },
      'a field of hosts[0] is "colour": expected one of name, gpus',
    ],
    [{ hosts: [{ workers: [{ device: "abacus" }] }] }, 'hosts[0].workers[0].device is "abacus"'],
    [{ hosts: [{ workers: [{ device: "3090", memoryGiB: -1 }] }] }, "hosts[0].workers[0].memoryGiB is -1"],
    [
      { hosts: [{ gpus: "1x3090" }], links: { withinHost: { gigabits: 0 } } },
      "links.withinHost.gigabits is 0",
    ],
    [
      { hosts: [{ gpus: "1x3090" }], assumptions: { computeEfficiency: 2 } },
      "assumptions.computeEfficiency is 2",
    ],
    [{ hosts: [{ gpus: "1x3090" }], pipelines: 0 }, "pipelines is 0"],
  ])("a file with %j is refused", (value, message) => {
    expect(() => readHardware(value)).toThrow(message);
  });

  it("takes measured times instead of data sheets, of a model of this width", async () => {
    const profile = {
      format: profileFormat,
      what: "a test",
      model: { hiddenSize: 4_096, ffnSize: 13_696, layerCount: 28 },
      layer: { x: [1, 64], y: [1, 2] },
      decodeKeys: { x: [1], y: [0] },
      chunkKeys: { x: [1], y: [0] },
      head: { x: [1], y: [4] },
      ...{ sharedBandwidth: 100e9, crowding: 1, threads: 1, cores: 1 },
    };
    const path = file("profile.json", JSON.stringify(profile));
    const one = ["--concurrency", "1", "--requests", "1", "--prompt-tokens", "1", "--reply-tokens", "20"];
    const json = JSON.parse(await run(...small, ...one, "--profile", path, "--json"));
    // 28 layers of 1 ms, the head, and hops.
    expect(json.itlMs.p50).toBeGreaterThan(32);
    expect(json.itlMs.p50).toBeLessThan(33);
    expect(await run(...small, ...one, "--profile", path)).toContain(
      "stages take what was measured (a test)",
    );
    await expect(run("--model", "glm-130b", "--gpus", "8x3090", "--profile", path)).rejects.toThrow(
      "the profile's hiddenSize (a test) is 4096: expected the model's 12288",
    );
  });

  it("opens a directory, of which no weight is read", async () => {
    const json = JSON.parse(await run("--model", "models/demo", "--gpus", "2xcpu", ...few, "--json"));
    expect(json).toMatchObject({ requests: 4, failed: 0, tokens: 64 });
  });

  it("reads the file that its document shows, which names every assumption", () => {
    const document = readFileSync("docs/simulation.md", "utf8");
    const { hardware, assumptions } = readHardware(parse(/```yaml\n(.*?)```/s.exec(document)![1]!));
    expect(hardware.hosts.map(({ devices }) => devices.length)).toEqual([2, 2]);
    expect(Object.keys(assumptions).sort()).toEqual(Object.keys(defaultAssumptions).sort());
  });

  it("shows examples in its help", () => {
    const program = new Command();
    addSimulateCommand(program);
    let help = "";
    const command = program.commands[0]!.configureOutput({ writeOut: (text) => (help += text) });
    command.outputHelp();
    expect(help).toContain("glm-relay simulate --model glm-130b --gpus 4x3090 --quantization int4");
    expect(help).toContain("--kill worker2@30s");
  });
});
