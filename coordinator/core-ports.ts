/** What the core is told once, and whom it tells. */
import type { ErrorCode } from "../common/errors.js";
import type { RequestId } from "../common/ids.js";
import type { StepHeader } from "../proto/generated/glm/relay/internal/v1/StepHeader.js";
import type { RequestEvent, TextParams } from "./inference.js";
import type { MembershipConfig, MembershipPorts } from "./membership/ports.js";
import type { Detokenizer } from "./prompt/service.js";

export interface CoreConfig {
  /** Sequences admitted and not finished; above it new requests get queue_full. */
  queueLimit: number;
  membership: Omit<MembershipConfig, "minBlocks">;
  /** Micro-batches in flight; null: by what is measured. */
  microBatches: number | null;
  prefillChunk: number;
  /** Decodes may carry drafts where they pay. */
  speculation: boolean;
  /** Time between neighbouring tokens of a sequence that prompts beside it should leave. */
  itlTargetMs: number;
  /** How long interrupted requests wait for the next pipeline. */
  recoveryTimeoutMs: number;
  /** KV slots in front of every sequence that hold a prefix encoder's keys and values. */
  prefixLength: number;
  modelStopTokens: ReadonlySet<number>;
  createDetokenizer(text: TextParams): Detokenizer;
}

export interface CorePorts extends Omit<MembershipPorts, "formed" | "dissolved"> {
  sendStep(header: StepHeader): void;
  /** What happened to a request; after `ended` nothing follows. */
  emit(request: RequestId, event: RequestEvent): void;
  ended(request: RequestId): void;
  /** Rows of a finished step. */
  stepFinished(rows: number): void;
  /** The pipeline answered its first token, or is gone. */
  readyChanged(ready: boolean): void;
  /** The first token after a ready pipeline was lost: why it was, and how long ago. */
  recovered(reason: ErrorCode, afterMs: number): void;
}
