/**
 * Prometheus metrics of the API and of what it can see. Names, labels and buckets are an interface that
 * dashboards and gateways read. Never a request id, a user or a raw path as a label: each value of a
 * label is a time series for ever.
 */
import { Counter, collectDefaultMetrics, Histogram, Registry } from "prom-client";
import type { GenerationRequest, InferenceService } from "../inference.js";
import { type CallInstruments, CallMetrics } from "./call-metrics.js";
import { createClusterMetrics } from "./cluster-metrics.js";
import { registerAlias } from "./metrics-alias.js";

/** Seconds; each set holds vLLM's, so that one set of counts can feed both names. */
const firstTokenBuckets = [
  0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640,
  2560,
];
const interTokenBuckets = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20,
  40, 80,
];
const durationBuckets = [
  0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480,
  960, 1920, 7680,
];
const stepBuckets = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

export interface Metrics {
  /** The whole page, in Prometheus' text format. */
  scrape(): Promise<string>;
  readonly contentType: string;
  /** @param status As sent; 499 when the client left before the end. */
  observeHttp(route: string, method: string, status: number, seconds: number): void;
  startCall(generation: GenerationRequest, n: number, arrivedMs: number): CallMetrics;
}

export function createMetrics(service: InferenceService): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });

  const counter = (name: string, help: string, labelNames: string[]) =>
    new Counter({ name: `glm_relay_${name}`, help, labelNames, registers });
  const histogram = (name: string, help: string, labelNames: string[], buckets: number[]) =>
    new Histogram({ name: `glm_relay_${name}`, help, labelNames, buckets, registers });

  const httpLabels = ["route", "method", "status"];
  const httpRequests = counter("http_requests_total", "HTTP responses; 499: the client left.", httpLabels);
  const httpDuration = histogram(
    "http_request_duration_seconds",
    "From the head of a request to the end of its response.",
    httpLabels,
    durationBuckets,
  );

  const lengths = tokenBuckets(service.model.contextLength);
  const calls: CallInstruments = {
    requests: counter("requests_total", "Accepted generation requests that have ended.", [
      "model",
      "endpoint",
      "finish_reason",
    ]),
    promptTokens: counter("prompt_tokens_total", "Prompt tokens of accepted requests.", ["model"]),
    generationTokens: counter("generation_tokens_total", "Generated tokens.", ["model"]),
    promptLength: histogram("request_prompt_tokens", "Tokens of a prompt.", ["model"], lengths),
    generationLength: histogram("request_generation_tokens", "Tokens of a choice.", ["model"], lengths),
    firstToken: histogram(
      "time_to_first_token_seconds",
      "From arrival to the first token of any choice.",
      ["model"],
      firstTokenBuckets,
    ),
    interToken: histogram(
      "inter_token_latency_seconds",
      "Time between neighbouring tokens of a choice.",
      ["model"],
      interTokenBuckets,
    ),
    duration: histogram("request_duration_seconds", "From arrival to the end.", ["model"], durationBuckets),
  };

  const model = service.model.id;
  const stepTokens = histogram("step_tokens", "Rows of a step, prefill and decode.", ["model"], stepBuckets);
  service.onStep((rows) => stepTokens.observe({ model }, rows));

  const cluster = createClusterMetrics(registry);
  const engine = { model_name: model, engine: "0" };
  const plain = () => engine;
  for (const [name, source] of [
    ["num_requests_running", cluster.requestsRunning],
    ["num_requests_waiting", cluster.requestsWaiting],
    ["kv_cache_usage_perc", cluster.kvUsageRatio],
    ["time_to_first_token_seconds", calls.firstToken],
    ["inter_token_latency_seconds", calls.interToken],
    ["e2e_request_latency_seconds", calls.duration],
    ["prompt_tokens_total", calls.promptTokens],
    ["generation_tokens_total", calls.generationTokens],
  ] as const) {
    registerAlias(registry, { name: `vllm:${name}`, source, labels: plain });
  }
  registerAlias(registry, {
    name: "vllm:cache_config_info",
    source: cluster.kvCacheInfo,
    labels: ({ block_size = "", num_blocks = "" }) => ({ ...engine, block_size, num_gpu_blocks: num_blocks }),
  });
  registerAlias(registry, {
    name: "vllm:request_success_total",
    source: calls.requests,
    labels: ({ finish_reason = "" }) => ({ ...engine, finished_reason: finish_reason }),
  });

  return {
    contentType: registry.contentType,
    async scrape() {
      cluster.update(service.cluster());
      return registry.metrics();
    },
    observeHttp(route, method, status, seconds) {
      httpRequests.inc({ route, method, status });
      httpDuration.observe({ route, method, status }, seconds);
    },
    startCall: (generation, n, arrivedMs) => new CallMetrics(calls, model, generation, n, arrivedMs),
  };
}

/** 1, 2, 5, 10, ... up to the first that a whole context cannot exceed. */
function tokenBuckets(contextLength: number): number[] {
  const buckets: number[] = [];
  for (let decade = 1; ; decade *= 10) {
    for (const step of [1, 2, 5]) {
      buckets.push(step * decade);
      if (step * decade >= contextLength) return buckets;
    }
  }
}
