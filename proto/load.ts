/** Loads our .proto files with the options from which the types in generated/ were made. */
import { join } from "node:path";
import { loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync, type PackageDefinition } from "@grpc/proto-loader";
import { packageRoot } from "../common/package.js";
import type { ProtoGrpcType } from "./generated/internal.js";

export const packageDefinition: PackageDefinition = loadSync(join(packageRoot, "proto", "internal.proto"), {
  longs: Number,
  enums: String,
  defaults: true,
  arrays: true,
  oneofs: true,
});

export const internalProto = (loadPackageDefinition(packageDefinition) as unknown as ProtoGrpcType).glm.relay
  .internal.v1;
