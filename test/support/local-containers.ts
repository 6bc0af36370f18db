/**
 * Containers without a container engine: a command, its environment and its files as a manifest or a compose file
 * gives them, run as a process of this machine. Each container has a loopback address of its own in place of its
 * network's, so all of them listen on the ports that are written there; names of neighbours, wildcard addresses and
 * mounted paths are replaced in the text of arguments, variables and configuration files. A program gets no
 * variable of this machine but PATH.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { randomInt } from "node:crypto";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { packageRoot } from "../../common/package.js";

export interface ContainerPlan {
  name: string;
  /** Of loopback. */
  address: string;
  /** Program and arguments as they are inside the container. */
  command: readonly string[];
  env: Readonly<Record<string, string>>;
  /** Paths inside the container, and what lies there, as directories or files of this machine. */
  mounts: ReadonlyMap<string, string>;
  /** Working directory inside the container; one of the mounts. */
  workingDirectory?: string;
}

/** Names of neighbours, and their addresses. */
export type Hosts = ReadonlyMap<string, string>;

/** The image's programs and files, here. */
const imageRoot = "/opt/glm-relay";
const programs: Record<string, readonly string[]> = {
  "glm-relay": [process.execPath, join(packageRoot, "dist/cli/main.js")],
  node: [process.execPath],
};

const keptOutput = 4_000_000;
/** Like the kubelet's pause before a container is started again, but short. */
const restartPauseMs = 500;
/** One that ends more often than this will not stop ending. */
const maxRestarts = 20;

/** Text as the container reads it, as the process here has to read it. */
export function localText(
  text: string,
  { address, mounts }: Pick<ContainerPlan, "address" | "mounts">,
  hosts: Hosts,
): string {
  let local = text
    .replaceAll("0.0.0.0", address)
    .replaceAll("bind * -::*", `bind ${address}`)
    .replace(/\blocalhost\b/g, address);
  for (const [host, at] of hosts) {
    local = local.replace(new RegExp(`(^|[=/@,\\s])${host}(?=:\\d)`, "g"), `$1${at}`);
  }
  // All at once: what a path becomes here may begin like another one.
  const paths = new Map([...mounts, [imageRoot, packageRoot]]);
  const longestFirst = [...paths.keys()].sort((a, b) => b.length - a.length);
  const path = new RegExp(`(^|[^\\w./-])(${longestFirst.join("|")})(?=$|[/\\s"';,)])`, "g");
  return local.replace(path, (_, before: string, inside: string) => before + paths.get(inside));
}

export class LocalContainer {
  readonly name: string;
  readonly address: string;
  /** How often it was started again after it had ended. */
  restarts = 0;
  output = "";
  readonly #plan: ContainerPlan;
  readonly #hosts: Hosts;
  #child: ChildProcess | null = null;
  #exited: Promise<number | null> = Promise.resolve(null);
  #stopping = false;

  constructor(plan: ContainerPlan, hosts: Hosts) {
    this.name = plan.name;
    this.address = plan.address;
    this.#plan = plan;
    this.#hosts = hosts;
  }

  get running(): boolean {
    return this.#child !== null;
  }

  /** Starts it, and starts it again whenever it ends by itself, as the kubelet does. */
  start(): void {
    this.#stopping = false;
    const child = this.#spawn(this.#plan.command);
    this.#child = child;
    this.#exited = exitOf(child).then((code) => {
      this.#child = null;
      return code;
    });
    void this.#exited.then(async () => {
      if (this.#stopping || this.restarts === maxRestarts) return;
      await sleep(restartPauseMs);
      if (this.#stopping) return;
      this.restarts++;
      this.start();
    });
  }

  /** Runs it to its end. */
  async run(): Promise<{ code: number | null; output: string }> {
    this.#stopping = true;
    this.#child = this.#spawn(this.#plan.command);
    const code = await exitOf(this.#child);
    this.#child = null;
    return { code, output: this.output };
  }

  /** Runs another program in the container; its exit status. */
  async exec(command: readonly string[]): Promise<number | null> {
    return exitOf(this.#spawn(command));
  }

  kill(signal: NodeJS.Signals): void {
    this.#child?.kill(signal);
  }

  /** SIGTERM, and SIGKILL when the grace is over. @returns The exit status; null when it had to be killed. */
  async stop(graceMs: number): Promise<number | null> {
    this.#stopping = true;
    const child = this.#child;
    if (child === null) return null;
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), graceMs);
    const code = await this.#exited;
    clearTimeout(timer);
    return code;
  }

  #spawn([program, ...rest]: readonly string[]): ChildProcess {
    const text = (value: string) => localText(value, this.#plan, this.#hosts);
    const [command, ...first] = programs[program!] ?? [program!];
    const env = Object.fromEntries(
      Object.entries(this.#plan.env).map(([name, value]) => [name, text(value)]),
    );
    const child = spawn(command!, [...first, ...rest.map(text)], {
      env: { PATH: process.env["PATH"], ...env },
      stdio: ["ignore", "pipe", "pipe"],
      cwd: this.#plan.mounts.get(this.#plan.workingDirectory ?? "") ?? "/",
    });
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.on("data", (data: Buffer) => {
        this.output = (this.output + data.toString()).slice(-keptOutput);
      });
    }
    return child;
  }
}

function exitOf(child: ChildProcess): Promise<number | null> {
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    // `close` and not `exit`: then the output is complete.
    child.once("close", (code) => resolve(code));
  });
}

/** So many loopback addresses on none of which anybody listens on one of the ports. */
export async function freeAddresses(count: number, ports: readonly number[]): Promise<string[]> {
  for (let attempt = 0; attempt < 20; attempt++) {
    const network = `127.${randomInt(1, 255)}.${randomInt(1, 255)}`;
    const addresses = Array.from({ length: count }, (_, index) => `${network}.${index + 1}`);
    const free = await Promise.all(
      addresses.flatMap((address) => ports.map((port) => isFree(address, port))),
    );
    if (free.every(Boolean)) return addresses;
  }
  throw new Error(`no loopback addresses are free on ports ${ports.join(", ")}`);
}

function isFree(address: string, port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once("error", () => resolve(false));
    server.listen(port, address, () => server.close(() => resolve(true)));
  });
}
