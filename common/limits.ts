/** Named bounds that more than one folder obeys. Whatever can grow has its limit here or beside its owner. */

/** Token slots of one KV block. */
export const kvBlockSize = 16;

/** Heartbeat of a worker and how long it is believed without one. */
export const heartbeatMs = 500;
export const leaseMs = 2_000;

/** Rows (prefill and decode tokens together) of one step. */
export const maxStepRows = 512;

/** Draft rows of one sequence in one step; with the decided row they are as many as a tile of logits has rows. */
export const maxDraftRows = 15;

/** Rows of a context that a prefix-LM reads in one step, beside them; the longest of any GLM is 2,048. */
export const maxContextRows = 2_048;

/**
 * Of one pipeline. As many as stages keep it busy, and twice as many where hops take as long as stages; GLM-130B has
 * 70 layers, and no more stages than that.
 */
export const maxMicroBatchesInFlight = 160;
/** Micro-batches a stage accepts unasked; above anything the coordinator keeps in flight. */
export const linkCredits = 192;

/** One gRPC message: the rows of a step and a context, 12,288 float32 activations each, are 120 MiB. */
export const maxGrpcMessageBytes = 128 * 1024 * 1024;
/** Flow-control window of the dialling (receiving) side of a link. */
export const linkWindowBytes = 16 * 1024 * 1024;

/** Characters of a request's id in the logs; a client's own x-request-id may be as long. */
export const maxLoggedIdLength = 128;

/** Requests that one log line names. */
export const maxLoggedRequests = 16;

/** One request body of the HTTP API. 500,000 token ids fit, more than the longest context of any GLM. */
export const maxBodyBytes = 4 * 1024 * 1024;

/** Alternatives a client may ask for per token. */
export const maxTopLogprobs = 20;
