/** Files as the API sees them; what keeps them stands in store.ts. */
import { randomBytes } from "node:crypto";

/** What a file is for: "batch" is a batch's input, "batch_output" what one has answered. */
export const filePurposes = ["batch", "batch_output"] as const;
export type FilePurpose = (typeof filePurposes)[number];

/** As `/v1/files` shows it. */
export interface FileObject {
  id: string;
  object: "file";
  bytes: number;
  /** Unix time in seconds, as the next. */
  created_at: number;
  /** When it is deleted; null: when it is deleted by hand, or by age or size (--files-days, --files-bytes). */
  expires_at: number | null;
  /** What its client called it; never a path here. */
  filename: string;
  purpose: FilePurpose;
  status: "processed";
}

/** What is said of a file when it is made. */
export interface NewFile {
  /** At most maxFilenameLength characters; shown again, never a path. */
  filename: string;
  purpose: FilePurpose;
  /** Nobody else sees it. */
  tenant: string;
  /** Seconds that it is kept; null: until it is deleted by hand, age or size. */
  expiresAfterS: number | null;
}

/** Which of a tenant's files, in which order. */
export interface FilePage {
  /** Id of the last one seen; null: from the first on. */
  after: string | null;
  limit: number;
  /** By when they were made; desc: newest first. */
  order: "asc" | "desc";
  /** Null: all. */
  purpose: FilePurpose | null;
}

/** Bytes of one file at most; the input of a batch may not be longer when it is decompressed, either. */
export const maxFileBytes = 200_000_000;
export const maxFilenameLength = 255;
/** For how long a client may ask a file to be kept: an hour to 30 days. */
export const expirySeconds = { min: 3_600, max: 2_592_000 } as const;

const idPattern = /^file-[0-9a-f]{32}$/;

export function newFileId(): string {
  return `file-${randomBytes(16).toString("hex")}`;
}

/** Nothing else ever becomes part of a path. */
export function isFileId(text: string): boolean {
  return idPattern.test(text);
}
