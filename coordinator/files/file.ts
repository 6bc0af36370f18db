/** Files as the API sees them; what keeps them stands in store.ts. */

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
