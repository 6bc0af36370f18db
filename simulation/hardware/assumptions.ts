/**
 * What a prediction rests on beside data sheets. Printed with every result, since another figure here is another
 * prediction.
 */
export interface Assumptions {
  /** Reached share of the nominal bandwidth of memory, and of the nominal arithmetic. */
  bandwidthEfficiency: number;
  computeEfficiency: number;
  /** What a layer takes beside its matrices and attention: starting kernels, norms, barriers. */
  layerOverheadUs: number;
  /** What a step takes in a worker beside its layers: reading the header, block tables, writing the message. */
  stepOverheadUs: number;
  /** The coordinator's main thread per step, and per sequence in it. */
  coordinatorStepUs: number;
  coordinatorSequenceUs: number;
  /** CPU time per step for its answers: HTTP, JSON, queue. No step waits for it; stages on the same cores do. */
  answersUs: number;
  /** Bytes per second at which a stage reads its weights when it is loaded. */
  loadBandwidth: number;
  /** From all stages loaded to all streams open. */
  linkMs: number;
}

export const defaultAssumptions: Assumptions = {
  // Nobody has measured our kernels on these cards: shares that well-written ones reach.
  bandwidthEfficiency: 0.7,
  computeEfficiency: 0.5,
  // About ten kernels, 3 us each.
  layerOverheadUs: 30,
  stepOverheadUs: 200,
  // bench/scheduler-cost.ts for the core, as much again for gRPC.
  coordinatorStepUs: 100,
  coordinatorSequenceUs: 3,
  // bench/throughput.ts, of 57 rows.
  answersUs: 1_500,
  // One NVMe disk.
  loadBandwidth: 3e9,
  linkMs: 20,
};

/** One direction between two workers, or between one of them and the coordinator. */
export interface LinkSpec {
  latencyUs: number;
  /** Bytes per second. */
  bandwidth: number;
}

/** Two processes on one machine, measured through gRPC with wide windows (bench/hop.ts). */
export const localLink: LinkSpec = { latencyUs: 150, bandwidth: 850e6 };
/** 10 gigabit Ethernet. */
export const networkLink: LinkSpec = { latencyUs: 250, bandwidth: 1.1e9 };
