/** The API in front of a batch service that does what the test says. */

import { pino } from "pino";
import { onTestFinished } from "vitest";
import { RelayError } from "../../../common/errors.js";
import type { Timing } from "../../../coordinator/api/limits.js";
import { type Api, createApi } from "../../../coordinator/api/server.js";
import {
  type BatchObject,
  type BatchService,
  type CreationName,
  isFinal,
  type NewBatch,
} from "../../../coordinator/batches/batch.js";
import { WebhookHosts } from "../../../coordinator/batches/webhook-hosts.js";
import { ScriptedService } from "./support.js";

export function batchObject(id: string, rest: Partial<BatchObject> = {}): BatchObject {
  return {
    id,
    object: "batch",
    endpoint: "/v1/chat/completions",
    model: "glm-test",
    errors: null,
    input_file_id: "file-0",
    completion_window: "24h",
    status: "in_progress",
    output_file_id: null,
    error_file_id: null,
    created_at: 1_700_000_000,
    in_progress_at: 1_700_000_001,
    expires_at: 1_700_086_400,
    finalizing_at: null,
    completed_at: null,
    failed_at: null,
    expired_at: null,
    cancelling_at: null,
    cancelled_at: null,
    request_counts: { total: 10, completed: 0, failed: 0 },
    usage: {
      input_tokens: 0,
      input_tokens_details: { cached_tokens: 0 },
      output_tokens: 0,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: 0,
    },
    metadata: null,
    priority: 0,
    token_budget: null,
    webhook: null,
    ...rest,
  };
}

/** Batches in memory, the newest first; their states change when the test says so. */
export class ScriptedBatches implements BatchService {
  readonly created: { batch: NewBatch; tenant: string; name: CreationName | null }[] = [];
  readonly batches: { object: BatchObject; tenant: string }[] = [];
  /** What create rejects with. */
  refusal: RelayError | null = null;
  readonly #watchers = new Map<string, Set<() => void>>();

  async create(batch: NewBatch, tenant: string, name: CreationName | null): Promise<BatchObject> {
    if (this.refusal !== null) throw this.refusal;
    this.created.push({ batch, tenant, name });
    return this.add(`batch_${this.batches.length}`, tenant, { metadata: batch.metadata });
  }

  get(id: string, tenant: string): BatchObject | null {
    return this.batches.find((each) => each.object.id === id && each.tenant === tenant)?.object ?? null;
  }

  list({ after, limit }: { after: string | null; limit: number }, tenant: string) {
    const own = this.batches.filter((each) => each.tenant === tenant).map(({ object }) => object);
    const begin = after === null ? 0 : own.findIndex(({ id }) => id === after) + 1;
    if (after !== null && begin === 0) throw new RelayError("not_found", `after: ${after} is not known`);
    return { data: own.slice(begin, begin + limit), hasMore: begin + limit < own.length };
  }

  async cancel(id: string, tenant: string): Promise<BatchObject> {
    const batch = this.get(id, tenant);
    if (batch === null) throw new RelayError("not_found", `${id} is not known`);
    if (isFinal(batch.status)) throw new RelayError("conflict", `${id} has ended: it is ${batch.status}`);
    this.change(id, { status: "cancelling" });
    return batch;
  }

  watch(id: string, changed: () => void): () => void {
    const watchers = this.#watchers.get(id) ?? new Set();
    this.#watchers.set(id, watchers);
    watchers.add(changed);
    return () => watchers.delete(changed);
  }

  watcherCount(id: string): number {
    return this.#watchers.get(id)?.size ?? 0;
  }

  add(id: string, tenant = "default", rest: Partial<BatchObject> = {}): BatchObject {
    const object = batchObject(id, rest);
    this.batches.unshift({ object, tenant });
    return object;
  }

  remove(id: string): void {
    this.batches.splice(
      this.batches.findIndex(({ object }) => object.id === id),
      1,
    );
    for (const changed of this.#watchers.get(id) ?? []) changed();
  }

  change(id: string, change: Partial<BatchObject>): void {
    Object.assign(this.batches.find(({ object }) => object.id === id)!.object, change);
    for (const changed of this.#watchers.get(id) ?? []) changed();
  }
}

export async function startBatchApi(
  options: { hosts?: string[]; timing?: Partial<Timing>; batches?: ScriptedBatches | null } = {},
): Promise<{ api: Api; batches: ScriptedBatches }> {
  const { hosts = [], timing = {}, batches = new ScriptedBatches() } = options;
  const api = await createApi(new ScriptedService(), {
    host: "127.0.0.1",
    port: 0,
    log: pino({ level: "silent" }),
    timing: { closeGraceMs: 200, ...timing },
    batches,
    webhookHosts: new WebhookHosts(hosts),
  });
  onTestFinished(() => api.close());
  return { api, batches: batches ?? new ScriptedBatches() };
}
