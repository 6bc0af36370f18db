/** The two kinds of frame that a link carries: steps between stages, results back to the coordinator. */
import { checksum } from "../../common/bytes.js";
import { RelayError } from "../../common/errors.js";
import type { Epoch } from "../../common/ids.js";
import type { LinkFrame__Output } from "../generated/glm/relay/internal/v1/LinkFrame.js";
import type { StepHeader__Output } from "../generated/glm/relay/internal/v1/StepHeader.js";
import type { StepResult__Output } from "../generated/glm/relay/internal/v1/StepResult.js";

export interface ReadFrame<T> {
  epoch: Epoch;
  pipeline: number;
  step: number;
  /** Bytes of activations. */
  bytes: number;
  content: T;
}

export interface FrameReader<T> {
  /** @throws RelayError corrupt_message for a frame of another kind or without an epoch. */
  read(frame: LinkFrame__Output): ReadFrame<T>;
  /** @throws RelayError corrupt_message when the content was damaged on its way. */
  verify(content: T): void;
}

export interface ReceivedStep {
  header: StepHeader__Output;
  activations: Uint8Array;
  /** CRC-32 as the sender wrote it. */
  checksum: number;
  /** Of the rows of the header's slice, when they come with it. */
  sliceActivations: Uint8Array;
  sliceChecksum: number;
}

export const stepFrames: FrameReader<ReceivedStep> = {
  read(frame) {
    const header = frame.step?.header;
    if (frame.step == null || header == null) throw unexpected(frame, "a step with its header");
    const { activations, checksum: sum, sliceActivations, sliceChecksum } = frame.step;
    return {
      epoch: header.epoch ?? noEpoch(),
      pipeline: header.pipeline,
      step: header.step,
      bytes: activations.byteLength + sliceActivations.byteLength,
      content: { header, activations, checksum: sum, sliceActivations, sliceChecksum },
    };
  },
  verify({ header, activations, checksum: written, sliceActivations, sliceChecksum }) {
    requireChecksum(`activations of step ${header.step}`, activations, written);
    if (header.slice !== null) {
      requireChecksum(`slice activations of step ${header.step}`, sliceActivations, sliceChecksum);
    }
  },
};

export const resultFrames: FrameReader<StepResult__Output> = {
  read(frame) {
    const { result } = frame;
    if (result == null) throw unexpected(frame, "a result");
    const { pipeline, step } = result;
    return { epoch: result.epoch ?? noEpoch(), pipeline, step, bytes: 0, content: result };
  },
  verify() {},
};

function requireChecksum(what: string, bytes: Uint8Array, written: number): void {
  const actual = checksum(bytes);
  if (actual === written) return;
  throw new RelayError(
    "corrupt_message",
    `${what} have CRC-32 ${hex(actual)}: the sender wrote ${hex(written)}`,
  );
}

const hex = (value: number): string => value.toString(16).padStart(8, "0");

function noEpoch(): never {
  throw new RelayError("corrupt_message", "a step names no epoch");
}

function unexpected(frame: LinkFrame__Output, expected: string): RelayError {
  return new RelayError("corrupt_message", `expected ${expected}, got ${frame.message ?? "an empty frame"}`);
}
