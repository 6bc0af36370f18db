import { afterAll, beforeAll, expect, it } from "vitest";
import { RelayError } from "../../../common/errors.js";
import { softwareVersion } from "../../../common/package.js";
import type { Api } from "../../../coordinator/api/server.js";
import { eventually, get, post, ScriptedService, saying, startApi, stream, tokensEvent } from "./support.js";

const service = new ScriptedService();
let api: Api;
let page: string;

async function scrape(): Promise<string> {
  const response = await fetch(`${api.address}/metrics`);
  expect(response.headers.get("content-type")).toBe("text/plain; version=0.0.4; charset=utf-8");
  return response.text();
}

/** The value of one line, labels in the order of the page. */
const value = (series: string): number | undefined => {
  const line = page.split("\n").find((candidate) => candidate.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
};

beforeAll(async () => {
  api = await startApi(service);
  service.script = async function* (request) {
    yield { type: "started" };
    yield* saying("hello")(request);
  };
  const prompt = [1, 2, 3];
  await post(api, "/v1/completions", { prompt });
  await stream(api, "/v1/completions", { prompt, n: 2 });
  await post(api, "/v1/chat/completions", { messages: [{ role: "user", content: "hi" }] });
  service.script = async function* (request) {
    yield tokensEvent(request, 0, "a");
    yield { type: "error", error: new RelayError("numeric_error", "not finite") };
  };
  await post(api, "/v1/completions", { prompt });
  service.script = async function* () {
    await new Promise(() => {});
  };
  const leaving = new AbortController();
  const left = fetch(`${api.address}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ prompt }),
    signal: leaving.signal,
  }).catch(() => undefined);
  await eventually(() => service.submitted.length === 5, "submit");
  leaving.abort();
  await left;
  await eventually(() => service.cancelled.length === 1, "cancel");
  await get(api, "/nowhere/at/all");
  await get(api, "/v1/models/some/other");
  for (const listener of service.stepListeners) listener(40);
  for (const listener of service.recoveryListeners) listener("worker_lost", 1.2);
  page = await scrape();
});
afterAll(() => api.close());

it("counts HTTP responses by route, never by path; 499 for clients that left", () => {
  const count = (route: string, method: string, status: number) =>
    value(`glm_relay_http_requests_total{route="${route}",method="${method}",status="${status}"}`);
  expect(count("/v1/completions", "POST", 200)).toBe(2);
  expect(count("/v1/completions", "POST", 500)).toBe(1);
  expect(count("/v1/completions", "POST", 499)).toBe(1);
  expect(count("unmatched", "GET", 404)).toBe(1);
  expect(count("/v1/models/*", "GET", 404)).toBe(1);
  expect(page).not.toContain("nowhere");
  expect(page).not.toContain("some/other");
  expect(page).toMatch(/glm_relay_http_request_duration_seconds_bucket\{le="0.01",route="\/v1\/completions"/);
});

it("counts requests by how they ended, and their tokens", () => {
  const requests = (endpoint: string, reason: string) =>
    value(`glm_relay_requests_total{model="glm-test",endpoint="${endpoint}",finish_reason="${reason}"}`);
  expect(requests("completions", "stop")).toBe(2);
  expect(requests("chat", "stop")).toBe(1);
  expect(requests("completions", "error")).toBe(1);
  expect(requests("completions", "abort")).toBe(1);
  const model = '{model="glm-test"}';
  // Four completions of three tokens, one chat of eight.
  expect(value(`glm_relay_prompt_tokens_total${model}`)).toBe(4 * 3 + 8);
  expect(value(`glm_relay_generation_tokens_total${model}`)).toBe(4 * 5 + 1);
  expect(value(`glm_relay_request_prompt_tokens_count${model}`)).toBe(5);
  expect(value(`glm_relay_request_generation_tokens_count${model}`)).toBe(4);
  expect(value(`glm_relay_request_generation_tokens_sum${model}`)).toBe(20);
  expect(value(`glm_relay_time_to_first_token_seconds_count${model}`)).toBe(4);
  expect(value(`glm_relay_inter_token_latency_seconds_count${model}`)).toBe(4 * 4);
  expect(value(`glm_relay_request_duration_seconds_count${model}`)).toBe(5);
  // The three that were answered had a first step; an error or a client that left ends no decoding.
  for (const name of ["queue", "prefill", "decode"]) {
    expect([name, value(`glm_relay_request_${name}_seconds_count${model}`)]).toEqual([name, 3]);
  }
  const seconds = (name: string) => value(`glm_relay_request_${name}_seconds_sum${model}`)!;
  expect(seconds("queue") + seconds("prefill") + seconds("decode")).toBeLessThanOrEqual(seconds("duration"));
  expect(value('glm_relay_request_prompt_tokens_bucket{le="500",model="glm-test"}')).toBe(5);
  expect(page).not.toContain('glm_relay_request_prompt_tokens_bucket{le="1000"');
});

it("shows what the cluster says", () => {
  const expected: Record<string, number> = {
    [`glm_relay_build_info{version="${softwareVersion}",kernels="scalar"}`]: 1,
    'glm_relay_requests_running{model="glm-test",priority="interactive"}': 3,
    'glm_relay_requests_running{model="glm-test",priority="batch"}': 1,
    'glm_relay_requests_waiting{model="glm-test",priority="interactive"}': 1,
    'glm_relay_requests_waiting{model="glm-test",priority="batch"}': 5,
    'glm_relay_kv_blocks{model="glm-test",pipeline="0",state="used"}': 25,
    'glm_relay_kv_blocks{model="glm-test",pipeline="0",state="free"}': 75,
    'glm_relay_kv_usage_ratio{model="glm-test"}': 0.25,
    'glm_relay_kv_cache_info{model="glm-test",block_size="16",num_blocks="100"}': 1,
    'glm_relay_epoch{model="glm-test",pipeline="0",part="term"}': 3,
    'glm_relay_epoch{model="glm-test",pipeline="0",part="plan"}': 7,
    'glm_relay_stages{model="glm-test",pipeline="0",state="wanted"}': 2,
    'glm_relay_stages{model="glm-test",pipeline="0",state="placed"}': 1,
    'glm_relay_pipelines{model="glm-test",state="ready"}': 1,
    'glm_relay_pipelines{model="glm-test",state="waiting"}': 0,
    'glm_relay_pipeline_sequences{model="glm-test",pipeline="0",state="running"}': 4,
    'glm_relay_pipeline_sequences{model="glm-test",pipeline="0",state="waiting"}': 6,
    'glm_relay_workers{model="glm-test",state="linked"}': 1,
    'glm_relay_workers{model="glm-test",state="failed"}': 0,
    'glm_relay_worker_heartbeat_age_seconds{model="glm-test",worker="w0"}': 0.25,
    'glm_relay_queue_oldest_age_seconds{model="glm-test"}': 1.25,
    'glm_relay_placements_total{model="glm-test",reason="start"}': 1,
    'glm_relay_workers_lost_total{model="glm-test",reason="left"}': 0,
    'glm_relay_workers_lost_total{model="glm-test",reason="disconnected"}': 1,
    'glm_relay_workers_lost_total{model="glm-test",reason="lease_over"}': 1,
    'glm_relay_recovery_seconds_sum{model="glm-test",reason="worker_lost"}': 1.2,
    'glm_relay_stale_messages_total{model="glm-test"}': 3,
    'glm_relay_stage_busy_seconds_total{model="glm-test",pipeline="0",stage="0"}': 1.5,
    'glm_relay_stage_idle_seconds_total{model="glm-test",pipeline="0",stage="0"}': 0.5,
    'glm_relay_micro_batches_in_flight{model="glm-test",pipeline="0"}': 2,
    glm_relay_redis_up: 1,
    'glm_relay_step_tokens_bucket{le="32",model="glm-test"}': 0,
    'glm_relay_step_tokens_bucket{le="64",model="glm-test"}': 1,
  };
  for (const [series, count] of Object.entries(expected))
    expect([series, value(series)]).toEqual([series, count]);
});

it("a second scrape shows the same totals, not their sum", async () => {
  page = await scrape();
  expect(value('glm_relay_placements_total{model="glm-test",reason="start"}')).toBe(1);
  expect(value('glm_relay_stage_busy_seconds_total{model="glm-test",pipeline="0",stage="0"}')).toBe(1.5);
});

it("vLLM's names carry the same counts", () => {
  const engine = 'model_name="glm-test",engine="0"';
  expect(value(`vllm:num_requests_running{${engine}}`)).toBe(4);
  expect(value(`vllm:num_requests_waiting{${engine}}`)).toBe(6);
  expect(value(`vllm:kv_cache_usage_perc{${engine}}`)).toBe(0.25);
  expect(value(`vllm:cache_config_info{${engine},block_size="16",num_gpu_blocks="100"}`)).toBe(1);
  expect(value(`vllm:prompt_tokens_total{${engine}}`)).toBe(20);
  expect(value(`vllm:generation_tokens_total{${engine}}`)).toBe(21);
  // Both endpoints together.
  expect(value(`vllm:request_success_total{${engine},finished_reason="stop"}`)).toBe(3);
  for (const name of [
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
  ]) {
    expect(page).toContain(`# TYPE vllm:${name} histogram`);
    expect(value(`vllm:${name}_bucket{${engine},le="+Inf"}`)).toBeGreaterThan(0);
    expect(value(`vllm:${name}_count{${engine}}`)).toBeGreaterThan(0);
  }
});

it("default metrics are there, and the page is the same for the probe port", async () => {
  expect(page).toContain("process_resident_memory_bytes");
  expect(page).toContain("nodejs_eventloop_lag_seconds");
  expect(await api.metrics()).toContain("glm_relay_build_info");
});
