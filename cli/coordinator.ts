/** `glm-relay coordinator`: the API, the queue and the schedule of one cluster. */
import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { maxMicroBatchesInFlight, maxStepRows } from "../common/limits.js";
import { ConfigurableCommand } from "./configuration/command.js";
import { CommandError, exitStatus } from "./errors.js";
import { addFilesOptions, type FilesFlags } from "./files-options.js";
import { addLayersOption, type LayerFlags, requireRangePerStage } from "./layers.js";
import { addModelOptions, type ModelFlags, openOptions } from "./model-options.js";
import { address, host, integer, name, port, redisUrl } from "./options.js";
import { tellParent } from "./parent.js";
import { addPrecisionOptions, type PrecisionFlags, quantizationOf } from "./precision.js";
import { addProcessOptions, type ProcessFlags, requireProbePort } from "./process-options.js";
import { redisWithPassword } from "./secrets.js";
import { runService } from "./service.js";
import { addWebhookOptions, requireUse, type WebhookFlags } from "./webhooks.js";

/** More stages than any GLM has layers: a typing error. */
const stagesMax = 1_000;
const pipelinesMax = 64;

const recoveryTimeoutMax = 7 * 24 * 3600;

export function addPipelinesOption(command: Command): Command {
  return command.option(
    "--pipelines <n>",
    "pipelines, each of which holds the model once in so many stages and serves its share of the requests",
    integer(1, pipelinesMax),
    1,
  );
}

export function addRecoveryOption(command: Command): Command {
  return command.option(
    "--recovery-timeout <seconds>",
    "how long accepted requests wait for the model to be served again when a worker or the coordinator was lost",
    integer(1, recoveryTimeoutMax),
    600,
  );
}

/** Slower than any reader, and than any pipeline that is of use. */
const itlTargetMax = 60_000;

export interface SchedulingFlags {
  itlTargetMs: number;
  speculation: "auto" | "off";
}

export function addSchedulingOptions(command: Command): Command {
  const speculation =
    "auto: steps carry guesses at next tokens, looked up in each text, where the measured hits pay for them; " +
    "answers are the same";
  return command
    .option(
      "--itl-target-ms <ms>",
      "time between a reply's tokens that the prompts of others should leave; prompts go in smaller parts for it",
      integer(1, itlTargetMax),
      200,
    )
    .addOption(new Option("--speculation <mode>", speculation).choices(["auto", "off"]).default("auto"));
}

export function addRedisPasswordOption(command: Command): Command {
  return command.option(
    "--redis-password-file <file>",
    "file with the password of --redis, which then stands in no list of processes",
  );
}

type SharedFlags = SchedulingFlags & PrecisionFlags & ModelFlags & LayerFlags & FilesFlags & WebhookFlags;

interface Flags extends SharedFlags, ProcessFlags {
  model: string;
  pipelines: number;
  host: string;
  port: number;
  grpcPort?: number;
  clusterListen: string;
  clusterAdvertise?: string;
  apiKeysFile?: string;
  insecureNoAuth?: boolean;
  redis: string;
  redisPasswordFile?: string;
  name: string;
  microBatches?: number;
  prefillChunk?: number;
  recoveryTimeout: number;
  data?: string;
}

export const grpcPortHelp =
  "port of the gRPC API on the same host, 0 picks a free one (default: no gRPC API)";

export const stages = integer(1, stagesMax);

export function addCoordinatorCommand(program: Command): void {
  const command = ConfigurableCommand.addTo(program, "coordinator")
    .description("Runs the coordinator: the HTTP API, the queue and the schedule of the pipelines.")
    .requiredOption("--model <dir>", "directory of the model")
    .requiredOption("--stages <n>", "workers that share the model's layers", stages)
    .option(
      "--host <host>",
      "address of the HTTP API; beyond loopback it needs --api-keys-file or --insecure-no-auth",
      host,
      "127.0.0.1",
    )
    .option("--port <port>", "port of the HTTP API, 0 picks a free one", port, 8000)
    .option("--grpc-port <port>", grpcPortHelp, port)
    .option(
      "--cluster-listen <host:port>",
      "where workers connect, port 0 picks a free one",
      address,
      "127.0.0.1:0",
    )
    .option(
      "--cluster-advertise <host:port>",
      "where workers reach that, port 0 for the one that is listened on (default: where it listens)",
      address,
    )
    .option(
      "--api-keys-file <file>",
      "file with the keys that callers of the API must have, one per line, # for comments; read again when it changes",
    )
    .option("--insecure-no-auth", "serves the API beyond loopback to everybody who reaches it")
    .requiredOption("--redis <url>", "Redis 6.2 or newer, or Valkey", redisUrl)
    .option("--name <name>", "namespace of the queue and of all keys in Redis", name, "glm-relay")
    .option(
      "--data <dir>",
      "keeps uploaded files and batches there, for this coordinator alone (default: offers neither)",
    );
  addRedisPasswordOption(command);
  addWebhookOptions(command);
  addSchedulingOptions(
    addRecoveryOption(addPrecisionOptions(addModelOptions(addLayersOption(addPipelinesOption(command))))),
  );
  const rest = addFilesOptions(command)
    .option(
      "--micro-batches <m>",
      "micro-batches in flight in each pipeline (default: by measured times; before that as many as stages)",
      integer(1, maxMicroBatchesInFlight),
    )
    .option(
      "--prefill-chunk <tokens>",
      "prompt tokens of one sequence in one step at most (default: 256)",
      integer(1, maxStepRows),
    );
  addProcessOptions(rest, "running requests have to finish").action(run);
}

async function run(flags: Flags): Promise<void> {
  const quantization = quantizationOf(flags);
  requireRangePerStage(flags);
  requireUse(flags, flags.data !== undefined);
  requireProbePort(flags);
  const redis = redisWithPassword(flags.redis, flags.redisPasswordFile);
  await runService(
    "coordinator",
    async () => {
      const [{ startCoordinator }, { createLogger }, { requireTrustedApi }] = await Promise.all([
        import("../coordinator/coordinator.js"),
        import("../common/log.js"),
        import("../common/tls.js"),
      ]);
      const { apiKeysFile, insecureNoAuth = false } = flags;
      try {
        requireTrustedApi(flags.host, { hasKeys: apiKeysFile !== undefined, insecureNoAuth });
      } catch (error) {
        throw new CommandError((error as Error).message, "invalid_configuration", exitStatus.badUsage);
      }
      return startCoordinator({
        ...flags,
        redis,
        model: resolve(flags.model),
        ...openOptions(flags),
        recoveryTimeoutS: flags.recoveryTimeout,
        kvType: flags.kv,
        quantization,
        ...(flags.webhookSecretFile === undefined
          ? {}
          : { webhookSecretFile: resolve(flags.webhookSecretFile) }),
        ...(apiKeysFile === undefined ? {} : { apiKeysFile: resolve(apiKeysFile) }),
        log: createLogger("coordinator"),
      });
    },
    (coordinator) => {
      const { url, grpcAddress, clusterAddress } = coordinator;
      tellParent({ type: "listening", url, grpcAddress, clusterAddress });
      coordinator.ready.then(
        () => process.stdout.write(`ready ${coordinator.url}\n`),
        // The reason reaches the user through `closed`.
        () => undefined,
      );
    },
    flags.drainTimeout,
  );
}
