/** A plain grpc-js client of the public service, as anyone would write it from public.proto. */
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import {
  type CallOptions,
  type ClientReadableStream,
  credentials,
  loadPackageDefinition,
  Metadata,
  makeGenericClientConstructor,
  type ServiceClientConstructor,
  type ServiceError,
  type StatusObject,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { protoPath as healthProtoPath } from "grpc-health-check";
import type { Delta__Output } from "../../proto/generated/glm/relay/v1/Delta.js";
import type { Finished__Output } from "../../proto/generated/glm/relay/v1/Finished.js";
import type { GenerateRequest } from "../../proto/generated/glm/relay/v1/GenerateRequest.js";
import type { GenerateResponse__Output } from "../../proto/generated/glm/relay/v1/GenerateResponse.js";
import type { InferenceClient } from "../../proto/generated/glm/relay/v1/Inference.js";
import type { ListModelsResponse__Output } from "../../proto/generated/glm/relay/v1/ListModelsResponse.js";
import { inferenceDefinition } from "../../proto/public.js";

export type GenerateStream = ClientReadableStream<GenerateResponse__Output>;

export interface GrpcAnswer {
  messages: GenerateResponse__Output[];
  deltas: Delta__Output[];
  /** Of the first choice. */
  text: string;
  tokens: number[];
  finished: Finished__Output | null;
  status: StatusObject;
  /** Of the head. */
  metadata: Metadata;
}

const InferenceConstructor = makeGenericClientConstructor(inferenceDefinition, "Inference");

export class GrpcClient {
  readonly inference: InferenceClient;
  readonly #address: string;
  readonly #others: { close(): void }[] = [];

  constructor(address: string) {
    this.#address = address;
    this.inference = new InferenceConstructor(
      address,
      credentials.createInsecure(),
    ) as unknown as InferenceClient;
  }

  generate(
    request: GenerateRequest,
    headers: Record<string, string> = {},
    options: CallOptions = {},
  ): Promise<GrpcAnswer> {
    const metadata = new Metadata();
    for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
    return answerOf(this.inference.Generate(request, metadata, options));
  }

  listModels(): Promise<ListModelsResponse__Output> {
    return new Promise((resolve, reject) => {
      this.inference.ListModels({}, (error, value) => (error ? reject(error) : resolve(value!)));
    });
  }

  /** Null when it went well. */
  cancel(id: string): Promise<ServiceError | null> {
    return new Promise((resolve) => this.inference.Cancel({ id }, (error) => resolve(error)));
  }

  health(service = ""): Promise<string> {
    return new Promise((resolve, reject) => {
      this.#healthClient().check({ service }, (error: Error | null, value: { status: string }) =>
        error ? reject(error) : resolve(value.status),
      );
    });
  }

  /** @param told Gets every status that is told. */
  watchHealth(service: string, told: (status: string) => void): void {
    const call = this.#healthClient().watch({ service });
    call.on("data", ({ status }: { status: string }) => told(status));
    call.on("error", () => undefined);
  }

  async services(): Promise<string[]> {
    const root = dirname(createRequire(import.meta.url).resolve("@grpc/reflection/package.json"));
    const file = join(root, "build/proto/grpc/reflection/v1/reflection.proto");
    const call = this.#client(file, "grpc.reflection.v1.ServerReflection").serverReflectionInfo();
    const answer = new Promise<any>((resolve, reject) => call.on("data", resolve).on("error", reject));
    call.write({ listServices: "" });
    const { listServicesResponse } = await answer;
    call.end();
    return listServicesResponse.service.map(({ name }: { name: string }) => name);
  }

  close(): void {
    for (const client of [this.inference, ...this.#others]) client.close();
  }

  #healthClient(): any {
    return this.#client(healthProtoPath, "grpc.health.v1.Health");
  }

  #client(protoFile: string, service: string): any {
    let found: any = loadPackageDefinition(loadSync(protoFile, { enums: String }));
    for (const part of service.split(".")) found = found[part];
    const client = new (found as ServiceClientConstructor)(this.#address, credentials.createInsecure());
    this.#others.push(client);
    return client;
  }
}

/** All that comes until the call has ended. */
export function answerOf(call: GenerateStream): Promise<GrpcAnswer> {
  const messages: GenerateResponse__Output[] = [];
  let head = new Metadata();
  call.on("metadata", (metadata: Metadata) => {
    head = metadata;
  });
  call.on("data", (message: GenerateResponse__Output) => messages.push(message));
  call.on("error", () => undefined);
  return new Promise((resolve) => {
    call.on("status", (status: StatusObject) => {
      const deltas = messages.flatMap(({ delta }) => (delta ? [delta] : []));
      const first = deltas.filter(({ choice }) => choice === 0);
      resolve({
        ...{ messages, deltas, status, metadata: head },
        text: first.map(({ text }) => text).join(""),
        tokens: first.flatMap(({ token_ids }) => token_ids),
        finished: messages.at(-1)?.finished ?? null,
      });
    });
  });
}

/** What a status tells of the error: our code and what stands beside it. */
export function trailers({ metadata }: Pick<StatusObject, "metadata">): Record<string, string> {
  return Object.fromEntries(Object.entries(metadata.getMap()).map(([name, value]) => [name, String(value)]));
}
