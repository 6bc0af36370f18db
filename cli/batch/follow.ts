/** Watches a batch until it has ended, whatever happens to the connection and to the coordinator meanwhile. */
import { type BatchObject, isFinal } from "../../coordinator/batches/batch.js";
import type { BatchClient } from "./client.js";
import { CallError, type Patience } from "./retry.js";

/**
 * Yields the batch now and at each change; the last one is final.
 * @throws CallError for what asking again would not change, CommandError when the coordinator stays away.
 */
export async function* follow(
  client: BatchClient,
  id: string,
  patience: Patience,
): AsyncGenerator<BatchObject> {
  for (;;) {
    try {
      for await (const batch of client.events(id, patience.signal)) {
        patience.succeeded();
        yield batch;
        if (isFinal(batch.status)) return;
      }
      throw new CallError(`${client.url} closed the connection`, null, null, true, null);
    } catch (error) {
      await patience.failed(error);
    }
  }
}
