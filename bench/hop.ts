/**
 * One hop of the data plane: a step with activations goes from this process to another one over a
 * real link and comes back over a second one. Half the round trip is one hop.
 */
import { fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Server } from "@grpc/grpc-js";
import { checksum } from "../common/bytes.js";
import { serverOptions } from "../common/grpc.js";
import { linkCredits } from "../common/limits.js";
import { serverCredentials } from "../common/tls.js";
import type { LinkHandlers } from "../proto/generated/glm/relay/internal/v1/Link.js";
import { Downstream } from "../proto/link/downstream.js";
import { type ReceivedStep, stepFrames } from "../proto/link/frames.js";
import { acceptLink } from "../proto/link/hello.js";
import { Upstream } from "../proto/link/upstream.js";
import { internalProto } from "../proto/load.js";
import { percentile, type Table } from "./report.js";

const epoch = { term: 1, plan: 1 };
const sizes = [256, 8 * 1024, 24 * 1024, 1024 * 1024];
const warmUpRounds = 50;
const rounds = 500;

export async function serveLink(stage: number): Promise<{ address: string; downstream: Downstream }> {
  const downstream = new Downstream(epoch);
  const server = new Server(serverOptions);
  const handlers: LinkHandlers = {
    Connect: (call) =>
      acceptLink(call, () => ({ plan: { epoch, pipeline: 0, stage, downstream }, newest: epoch })),
  };
  server.addService(internalProto.Link.service, handlers);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", serverCredentials("127.0.0.1:0"), (error, bound) =>
      error === null ? resolve(bound) : reject(error),
    );
  });
  return { address: `127.0.0.1:${port}`, downstream };
}

export function dialLink(predecessor: string, stage: number): Upstream<ReceivedStep> {
  return new Upstream<ReceivedStep>(
    {
      predecessor,
      epoch,
      pipeline: 0,
      stage,
      credits: linkCredits,
      onStale: () => {},
      onReceived: () => {},
      onLost: (error) => {
        throw error;
      },
    },
    stepFrames,
  );
}

export async function hopBench(): Promise<Table> {
  const { address, downstream } = await serveLink(0);
  const peer = fork(fileURLToPath(new URL("./hop-peer.js", import.meta.url)), [address]);
  const peerAddress = await new Promise<string>((resolve) =>
    peer.once("message", (message) => resolve(String(message))),
  );
  const upstream = dialLink(peerAddress, 2);
  await upstream.open();
  const rows: string[][] = [];
  let step = 0;
  for (const size of sizes) {
    const activations = Buffer.alloc(size, 1);
    const sum = checksum(activations);
    const halves: number[] = [];
    for (let round = -warmUpRounds; round < rounds; round++) {
      const sent = performance.now();
      await downstream.send({
        step: {
          header: { epoch, pipeline: 0, step: ++step, sequences: [], ended: [] },
          activations,
          checksum: sum,
        },
      });
      await upstream.next();
      upstream.consumed();
      if (round >= 0) halves.push((performance.now() - sent) / 2);
    }
    rows.push([`${size / 1024} KiB`, percentile(halves, 50).toFixed(3), percentile(halves, 99).toFixed(3)]);
  }
  upstream.close();
  peer.kill();
  return {
    title: "One hop between two processes on loopback (ms)",
    head: ["activations", "median", "p99"],
    rows,
  };
}
