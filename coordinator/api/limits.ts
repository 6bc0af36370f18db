/** Bounds of the API, HTTP and gRPC. Each one closes a way in which a single client could take more than its share. */

/**
 * A body up to this size is read on the main thread, a larger one in a thread: 16 KiB of the worst kind
 * (brackets alone) took 0.5 ms, and going to an idle thread and back 0.05 ms.
 */
export const maxInlineBodyBytes = 16 * 1024;
/** The same for a message over gRPC: 4 KiB of the worst kind (empty messages) took 1 ms, 16 KiB up to 13. */
export const maxInlineMessageBytes = 4 * 1024;
/** What is read and thrown away of a body that is too large, so that the client gets to see the 413. */
export const maxDiscardedBytes = 64 * 1024 * 1024;
/** The same of what comes when the answer is out: the rest of any upload. */
export const maxRestBytes = 256 * 1024 * 1024;
/** Of the form around an uploaded file. */
export const maxFormBytes = 64 * 1024;
export const maxFormFields = 16;
export const maxFormValueBytes = 1_024;
/** Uploads at the same time; each has a few buffers and an open file. */
export const maxUploads = 32;
/** An upload brings at least so much in `uploadStallMs`: a slow line does, a client that only keeps its place does not. */
export const minProgressBytes = 64 * 1024;
/** What is read of a file at a time to be sent. */
export const downloadChunkBytes = 256 * 1024;
/** A client that takes longer than this to send its request gets 408; uploads have `uploadStallMs` instead. */
export const requestTimeoutMs = 60_000;
/** Open sockets; the kernel's own limit is met at a worse moment. */
export const maxConnections = 16_384;
/**
 * Connections that the kernel holds until they are accepted, where its own limit (somaxconn) allows. Node asks for
 * 511; of ten thousand clients at once some were cut off then.
 */
export const maxWaitingConnections = 4_096;

/** Calls that one gRPC connection may have open; a client that wants more opens another. */
export const maxStreamsPerConnection = 1_024;

export const maxPrompts = 256;
export const maxChoicesPerPrompt = 128;
/** Choices of one call, all prompts together. */
export const maxChoices = 1_024;
/** Prompt tokens of one call, each choice counted. */
export const maxPromptTokensPerCall = 2 * 1024 * 1024;
export const maxMessages = 4_096;
/** As at OpenAI, names too. */
export const maxTools = 128;
export const maxToolNameLength = 64;
/** Calls of one message. */
export const maxToolCalls = 128;
export const maxTemplateVariables = 64;
/** Levels of a tool's schema and of a call's arguments. */
export const maxJsonDepth = 64;
export const maxStopStrings = 16;
export const maxStopStringLength = 1_024;
export const maxStopTokenIds = 256;
/** Model ids in a path are at most this long. */
export const maxPathParameterLength = 256;
/** Ids that a query or a body names. */
export const maxIdLength = 256;
/** Of the body that makes a batch: more than its metadata can take, and read in a few milliseconds. */
export const maxBatchBodyBytes = 128 * 1024;

/** Characters of a client's value that an error message repeats. */
export const maxShownCharacters = 60;
/** Characters of the tenant that a request names. */
export const maxTenantLength = 128;
/** The longest time that a client may set for its answer: a day. */
export const maxRequestTimeoutMs = 24 * 60 * 60 * 1_000;
/** Names of unknown fields that a log line repeats. */
export const maxLoggedFields = 16;

/** Of an answer that is kept because its client is gone. */
export const maxKeptAnswerCharacters = 16 * 1024 * 1024;

export interface Timing {
  /** Silence on a stream after which a comment keeps proxies from closing it. */
  pingMs: number;
  /** How long the head of a stream waits for the first event, so that an early error keeps its status. */
  headDelayMs: number;
  /** A client that reads nothing for this long while data waits for it is given up. */
  stalledClientMs: number;
  /** For a request to arrive, over gRPC and over HTTP; not for a file that is uploaded. */
  arrivalMs: number;
  /** At close, how long running responses may go on. */
  closeGraceMs: number;
  /** Time in which an upload has to move on. */
  uploadStallMs: number;
  /** Between two events of a batch. */
  batchEventMs: number;
}

export const defaultTiming: Timing = {
  pingMs: 15_000,
  headDelayMs: 1_000,
  stalledClientMs: 120_000,
  arrivalMs: requestTimeoutMs,
  closeGraceMs: 5_000,
  uploadStallMs: 60_000,
  batchEventMs: 250,
};
