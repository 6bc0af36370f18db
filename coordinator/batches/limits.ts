/** Bounds of batches. Each one closes a way in which one of them could take more than its share. */
import { maxBodyBytes } from "../../common/limits.js";
import { maxFileBytes } from "../files/file.js";

/** Lines of one input, as at OpenAI. */
export const maxLines = 50_000;
/** Bytes of one input, decompressed. */
export const maxInputBytes = maxFileBytes;
/** What stands around the body in a line. */
const maxEnvelopeBytes = 64 * 1024;
export const maxLineBytes = maxBodyBytes + maxEnvelopeBytes;
/** All custom_ids of an input are held in memory while it is checked. */
export const maxCustomIdLength = 512;
/** Problems of one input that are told; one more says how many there are. */
export const maxProblems = 100;

/** Lines of one job, and the jobs that a batch is cut into where that leaves so many lines to each. */
export const jobLines = { least: 32, most: 256 } as const;
export const jobsWanted = 64;
/** Bytes of a job that has more than one line. */
export const maxJobBytes = 8 * 1024 * 1024;

/** Lines of all batches together that are being answered, and the bytes of their bodies. */
export const batchWindow = 1_024;
export const batchWindowBytes = 64 * 1024 * 1024;
/** Jobs that run at the same time: with the fewest lines each they fill the window. */
export const jobConcurrency = 32;

/** Batches that have not ended. */
export const maxOpenBatches = 256;
/** Batches that are kept, ended ones included; the oldest ended ones go first. */
export const maxKeptBatches = 10_000;

/** Pauses before a line is tried again: doubled each time. */
export const retryMs = { first: 100, most: 5_000 } as const;
/** Between attempts at writing to a disk that is full. */
export const diskRetryMs = 2_000;

/** One line of a ledger: answers are written up to 16 Mi characters (api/limits.ts), of three bytes each at most. */
export const maxRecordBytes = 64 * 1024 * 1024;
