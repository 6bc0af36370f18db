/** Which state of a batch may follow which. Pure. */
import { type BatchStatus, isFinal } from "./batch.js";

/** How a batch ends once its files are there. */
export type BatchEnd = "completed" | "expired" | "cancelled";

export interface BatchState {
  status: BatchStatus;
  /** Null while nothing says that it ends. */
  end: BatchEnd | null;
}

export type BatchEvent =
  /** Its input was checked. */
  | "valid"
  | "invalid"
  /** No line is left to be answered. */
  | "answered"
  | "expire"
  | "cancel"
  /** Its output and error file are there. */
  | "merged";

/** @returns Null when the event changes nothing: it comes too late, or too early. */
export function nextState({ status, end }: BatchState, event: BatchEvent): BatchState | null {
  if (isFinal(status)) return null;
  switch (event) {
    case "valid":
      return status === "validating" ? { status: "in_progress", end } : null;
    case "invalid":
      return status === "validating" ? { status: "failed", end } : null;
    case "answered":
      return status === "in_progress" ? { status: "finalizing", end: "completed" } : null;
    case "expire":
      return isRunning(status) ? { status: "finalizing", end: "expired" } : null;
    case "cancel":
      return isRunning(status) ? { status: "cancelling", end: "cancelled" } : null;
    case "merged":
      return end === null ? null : { status: end, end };
  }
}

const isRunning = (status: BatchStatus) => status === "validating" || status === "in_progress";
