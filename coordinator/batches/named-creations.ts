/**
 * Batches that their client has named, so that asking again makes no second one. The name stands in the batch's
 * record: it holds as long as the batch is kept, in every process, and there are no more names than batches.
 */
import { RelayError } from "../../common/errors.js";
import type { BatchObject, CreationName } from "./batch.js";
import type { BatchRecord } from "./record.js";

interface UnderWay {
  request: string;
  made: Promise<BatchObject>;
}

export class NamedCreations {
  readonly #underWay = new Map<string, UnderWay>();

  /**
   * The batch of this name: the one that is there, or the one that `create` makes, which happens once however many ask
   * at the same time. When it fails, all of these fail alike and the name is free again.
   * @param kept All batches' records.
   * @param show A batch that is kept, as the API shows it now.
   * @throws RelayError conflict when the name is that of another request; what `create` throws.
   */
  async once<Kept extends { readonly record: BatchRecord }>(
    { key, request }: CreationName,
    tenant: string,
    kept: Iterable<Kept>,
    show: (batch: Kept) => BatchObject,
    create: () => Promise<BatchObject>,
  ): Promise<BatchObject> {
    for (const batch of kept) {
      const { record } = batch;
      if (record.tenant !== tenant || record.creation?.key !== key) continue;
      requireSame(record.creation.request, request);
      return show(batch);
    }
    const name = JSON.stringify([tenant, key]);
    const other = this.#underWay.get(name);
    if (other !== undefined) {
      requireSame(other.request, request);
      return structuredClone(await other.made);
    }
    const made = create();
    this.#underWay.set(name, { request, made });
    try {
      return await made;
    } finally {
      this.#underWay.delete(name);
    }
  }
}

function requireSame(before: string, now: string): void {
  if (before === now) return;
  const message =
    "idempotency-key: another batch was made by this key, expected the same body as then or another key";
  throw new RelayError("conflict", message, { param: "idempotency-key" });
}
