/**
 * The gRPC server: the public service beside the standard ones for health and reflection. It shares
 * validation, queue, figures and log lines with the HTTP server; both know nothing of steps and workers.
 */
import { type ChannelOptions, Server, ServerCredentials } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation, protoPath as healthProtoPath } from "grpc-health-check";
import { hostOf, urlHost } from "../../../common/address.js";
import { RelayError } from "../../../common/errors.js";
import { publicServerOptions } from "../../../common/grpc.js";
import { maxBodyBytes } from "../../../common/limits.js";
import { inferenceDefinition, inferenceName, publicPackage } from "../../../proto/public.js";
import type { ApiContext } from "../context.js";
import type { ApiKeys } from "../keys.js";
import { maxStreamsPerConnection } from "../limits.js";
import { arrivalLimit } from "./arrival.js";
import { type GenerateCall, generate } from "./generate.js";
import { keyCheck } from "./key-check.js";
import { cancelHandler, listModelsHandler } from "./unary.js";

const healthName = "grpc.health.v1.Health";
/** After the last answer: for its end to leave, before streams that never end (Watch) are cut. */
const flushMs = 100;

const options: ChannelOptions = {
  ...publicServerOptions,
  // Above our own limit, so that a message a little too large is told so with our code.
  "grpc.max_receive_message_length": 2 * maxBodyBytes,
  "grpc.max_concurrent_streams": maxStreamsPerConnection,
};

/** Requests stay bytes here: large ones are decoded in a thread. */
const asBytes = (bytes: Buffer): Uint8Array => bytes;
const definition = {
  Generate: { ...inferenceDefinition.Generate, requestDeserialize: asBytes },
  Cancel: { ...inferenceDefinition.Cancel, requestDeserialize: asBytes },
  ListModels: { ...inferenceDefinition.ListModels, requestDeserialize: asBytes },
};

export interface GrpcApi {
  /** host:port, with the port that was bound. */
  address: string;
  /** Takes no more calls, lets running ones end within the time, then cuts them. */
  close(graceMs: number): Promise<void>;
}

/**
 * @param host Whether the API may be served there is decided before (requireTrustedApi).
 * @throws RelayError invalid_configuration when the address cannot be bound.
 */
export async function createGrpcApi(
  context: ApiContext,
  host: string,
  port: number,
  keys: ApiKeys | null,
): Promise<GrpcApi> {
  const checks = keys === null ? [] : [keyCheck(keys, context)];
  const server = new Server({
    ...options,
    interceptors: [arrivalLimit(context.timing.arrivalMs), ...checks],
  });
  const running = new Set<Promise<void>>();
  server.addService(definition, {
    Generate: (call: GenerateCall) => {
      const answered = generate(context, call).finally(() => running.delete(answered));
      running.add(answered);
    },
    Cancel: cancelHandler(context),
    ListModels: listModelsHandler(context),
  });
  addHealth(server, context);
  const described = { ...publicPackage, ...loadSync(healthProtoPath) };
  new ReflectionService(described, { services: [inferenceName, healthName] }).addToServer(server);
  return {
    address: await bind(server, host, port),
    close: (graceMs) => close(server, running, graceMs),
  };
}

/** Serving means that a request would be taken now: the same as /readyz. */
function addHealth(server: Server, { service }: ApiContext): void {
  const status = (): "SERVING" | "NOT_SERVING" => (service.notReady() === null ? "SERVING" : "NOT_SERVING");
  const health = new HealthImplementation({ "": status(), [inferenceName]: status() });
  let told = status();
  service.onReadiness(() => {
    if (status() === told) return;
    told = status();
    for (const name of ["", inferenceName]) health.setStatus(name, told);
  });
  health.addToServer(server);
}

function bind(server: Server, host: string, port: number): Promise<string> {
  const address = `${urlHost(host)}:${port}`;
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, bound) => {
      if (error === null) resolve(`${hostOf(address)}:${bound}`);
      else {
        const reason = error.message.includes("EADDRINUSE")
          ? "another process uses this port"
          : error.message;
        const problem = `cannot serve gRPC on ${address}: ${reason}`;
        reject(new RelayError("invalid_configuration", problem, { cause: error }));
      }
    });
  });
}

async function close(server: Server, running: Set<Promise<void>>, graceMs: number): Promise<void> {
  const closed = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
  const ended = Promise.all(running);
  const timers: NodeJS.Timeout[] = [];
  const after = (ms: number) => new Promise((resolve) => timers.push(setTimeout(resolve, ms)));
  await Promise.race([closed, ended, after(graceMs)]);
  await Promise.race([closed, after(flushMs)]);
  server.forceShutdown();
  for (const timer of timers) clearTimeout(timer);
}
