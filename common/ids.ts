/** Branded ids, so that none can be passed for another, and the order of epochs. */
declare const brand: unique symbol;
type Branded<T, Name extends string> = T & { readonly [brand]: Name };

export type RequestId = Branded<string, "RequestId">;
export type WorkerId = Branded<string, "WorkerId">;
export type PipelineId = Branded<number, "PipelineId">;
/** Unique within an epoch of one pipeline. */
export type SequenceId = Branded<number, "SequenceId">;

export const requestId = (value: string): RequestId => value as RequestId;
export const workerId = (value: string): WorkerId => value as WorkerId;
export const pipelineId = (value: number): PipelineId => value as PipelineId;
export const sequenceId = (value: number): SequenceId => value as SequenceId;

/** (term, plan number): a message of an older epoch is dropped, of a newer one waits for the plan. */
export interface Epoch {
  readonly term: number;
  readonly plan: number;
}

/** Negative when a is older than b, 0 when equal, positive when newer. */
export function compareEpochs(a: Epoch, b: Epoch): number {
  return a.term - b.term || a.plan - b.plan;
}

export function formatEpoch(epoch: Epoch): string {
  return `${epoch.term}.${epoch.plan}`;
}
