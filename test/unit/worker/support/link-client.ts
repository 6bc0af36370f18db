/** The receiving side of a link, spoken by the test: what the coordinator does behind the last stage. */
import type { ClientDuplexStream, StatusObject } from "@grpc/grpc-js";
import { linkChannelOptions } from "../../../../common/grpc.js";
import { protocolVersion } from "../../../../common/package.js";
import { channelCredentials } from "../../../../common/tls.js";
import type { Hello } from "../../../../proto/generated/glm/relay/internal/v1/Hello.js";
import type { LinkFrame__Output } from "../../../../proto/generated/glm/relay/internal/v1/LinkFrame.js";
import type { LinkRequest } from "../../../../proto/generated/glm/relay/internal/v1/LinkRequest.js";
import { internalProto } from "../../../../proto/load.js";
import { Inbox } from "./inbox.js";

export class LinkClient {
  readonly frames = new Inbox<LinkFrame__Output>("link frames");
  readonly status: Promise<StatusObject>;
  readonly #stream: ClientDuplexStream<LinkRequest, LinkFrame__Output>;

  constructor(address: string, hello: Hello = {}) {
    const client = new internalProto.Link(address, channelCredentials(address), linkChannelOptions);
    this.#stream = client.Connect();
    this.#stream.on("data", (frame: LinkFrame__Output) => this.frames.put(frame));
    this.#stream.on("error", () => undefined);
    this.status = new Promise((resolve) => {
      this.#stream.on("status", (status: StatusObject) => {
        client.close();
        resolve(status);
      });
    });
    this.#stream.write({
      hello: {
        protocolVersion,
        epoch: { term: 1, plan: 1 },
        pipeline: 0,
        fromStage: 1,
        credits: 8,
        ...hello,
      },
    });
  }

  opened(): Promise<LinkFrame__Output> {
    return this.frames.next((frame) => frame.opened != null);
  }

  credit(count: number): void {
    this.#stream.write({ credit: count });
  }

  async closeNow(): Promise<void> {
    this.#stream.cancel();
    await this.status;
  }
}
