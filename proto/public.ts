/**
 * The public service as data, for servers, clients and the threads that read its requests. Names stay as
 * they are in the file, since they are those of the HTTP API; int64 are strings, since a seed has all bits.
 */
import { join } from "node:path";
import { loadSync, type PackageDefinition } from "@grpc/proto-loader";
import { packageRoot } from "../common/package.js";
import type { InferenceDefinition } from "./generated/glm/relay/v1/Inference.js";

export const publicPackage: PackageDefinition = loadSync(join(packageRoot, "proto", "public.proto"), {
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  arrays: true,
  oneofs: true,
});

export const inferenceName = "glm.relay.v1.Inference";
export const inferenceDefinition = publicPackage[inferenceName] as unknown as InferenceDefinition;
