/**
 * Prometheus metrics of the API and of what it can see. Names, labels and buckets are an interface that
 * dashboards and gateways read. Never a request id, a user or a raw path as a label: each value of a
 * label is a time series for ever.
 */
import { Counter, collectDefaultMetrics, Gauge, Histogram, type Registry } from "prom-client";
import { firstTokenBuckets, requestBuckets, stepBuckets } from "../../common/buckets.js";
import type { FilePurpose } from "../files/file.js";
import type { FileStore } from "../files/store.js";
import type { GenerationRequest, InferenceService } from "../inference.js";
import { type CallInstruments, CallMetrics } from "./call-metrics.js";
import { createClusterMetrics } from "./cluster-metrics.js";
import { registerAlias } from "./metrics-alias.js";

const stepTokenBuckets = [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

export interface Metrics {
  /** The whole page, in Prometheus' text format. */
  scrape(): Promise<string>;
  readonly contentType: string;
  /** @param status As sent; 499 when the client left before the end. */
  observeHttp(route: string, method: string, status: number, seconds: number): void;
  /** @param status The name of the gRPC status; CANCELLED when the client left before the end. */
  observeGrpc(method: string, status: string, seconds: number): void;
  startCall(
    generation: GenerationRequest,
    n: number,
    times: { arrivedMs: number; submittedMs: number },
  ): CallMetrics;
  /** A request that an earlier process had accepted has ended. */
  orphanEnded(outcome: "completed" | "failed"): void;
}

/**
 * @param registry May hold figures of other parts already.
 * @param files Null: none are kept.
 */
export function createMetrics(
  service: InferenceService,
  registry: Registry,
  files: FileStore | null,
): Metrics {
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
    requestBuckets,
  );

  const grpcLabels = ["method", "status"];
  const grpcRequests = counter("grpc_requests_total", "Calls of the public gRPC service.", grpcLabels);
  const grpcDuration = histogram(
    "grpc_request_duration_seconds",
    "From the arrival of a gRPC call to its end.",
    grpcLabels,
    requestBuckets,
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
      stepBuckets,
    ),
    duration: histogram("request_duration_seconds", "From arrival to the end.", ["model"], requestBuckets),
    queued: histogram(
      "request_queue_seconds",
      "From its way into the queue to its first step.",
      ["model"],
      requestBuckets,
    ),
    prefill: histogram(
      "request_prefill_seconds",
      "From the first step to the first token of any choice.",
      ["model"],
      requestBuckets,
    ),
    decode: histogram(
      "request_decode_seconds",
      "From the first token of any choice to the last of all, of requests that were answered.",
      ["model"],
      requestBuckets,
    ),
  };

  const model = service.model.id;
  const stepTokens = histogram(
    "step_tokens",
    "Rows of a step, prefill and decode.",
    ["model"],
    stepTokenBuckets,
  );
  service.onStep((rows) => stepTokens.observe({ model }, rows));
  const recovery = histogram(
    "recovery_seconds",
    "From the loss of a pipeline that served to the first token of the next one.",
    ["model", "reason"],
    requestBuckets,
  );
  service.onRecovery((reason, seconds) => recovery.observe({ model, reason }, seconds));

  const orphans = counter("orphans_total", "Requests of an earlier process that this one has ended.", [
    "model",
    "outcome",
  ]);
  for (const outcome of ["completed", "failed"]) orphans.inc({ model, outcome }, 0);

  const filesBytes = new Gauge({
    name: "glm_relay_files_bytes",
    help: "Uploaded files and files of answers that are kept.",
    labelNames: ["model", "purpose"],
    registers,
  });
  const noFiles: Record<FilePurpose, number> = { batch: 0, batch_output: 0 };
  const updateFiles = () => {
    for (const [purpose, bytes] of Object.entries(files?.bytes() ?? noFiles)) {
      filesBytes.set({ model, purpose }, bytes);
    }
  };

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
    ["request_queue_time_seconds", calls.queued],
    ["request_prefill_time_seconds", calls.prefill],
    ["request_decode_time_seconds", calls.decode],
    ["prompt_tokens_total", calls.promptTokens],
    ["generation_tokens_total", calls.generationTokens],
    ["prefix_cache_queries_total", cluster.prefixCacheQueries],
    ["prefix_cache_hits_total", cluster.prefixCacheHits],
    ["num_preemptions_total", cluster.preemptions],
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
      updateFiles();
      return registry.metrics();
    },
    observeHttp(route, method, status, seconds) {
      httpRequests.inc({ route, method, status });
      httpDuration.observe({ route, method, status }, seconds);
    },
    observeGrpc(method, status, seconds) {
      grpcRequests.inc({ method, status });
      grpcDuration.observe({ method, status }, seconds);
    },
    startCall: (generation, n, times) => new CallMetrics(calls, model, generation, n, times),
    orphanEnded: (outcome) => orphans.inc({ model, outcome }),
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
