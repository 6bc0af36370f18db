/** What meta.json says of a file. */
import { readFile } from "node:fs/promises";
import { type FileObject, filePurposes, type NewFile } from "./file.js";

export interface Meta extends NewFile {
  id: string;
  /** Files of a directory are counted: a clock may be set back. */
  order: number;
  /** Unix time. */
  createdMs: number;
  bytes: number;
}

export function objectOf(meta: Meta): FileObject {
  return {
    id: meta.id,
    object: "file",
    bytes: meta.bytes,
    created_at: Math.floor(meta.createdMs / 1_000),
    expires_at: expiresAtS(meta),
    filename: meta.filename,
    purpose: meta.purpose,
    status: "processed",
  };
}

/** Negative when a was made before b. */
export function compareAge(a: Meta, b: Meta): number {
  // Numbers are equal only where people have copied folders.
  return a.order - b.order || (a.id < b.id ? -1 : Number(a.id !== b.id));
}

/** Whether its own time is over. */
export function isOver(meta: Meta, nowMs: number): boolean {
  const endS = expiresAtS(meta);
  return endS !== null && nowMs >= endS * 1_000;
}

function expiresAtS({ createdMs, expiresAfterS }: Meta): number | null {
  return expiresAfterS === null ? null : Math.floor(createdMs / 1_000) + expiresAfterS;
}

/** @returns What is wrong with it, as text, when it is not what was once written for the file of this id. */
export async function readMeta(path: string, id: string): Promise<Meta | string> {
  let value: unknown;
  try {
    value = JSON.parse(await readFile(path, "utf8"));
  } catch (error) {
    return `meta.json cannot be read: ${(error as Error).message}`;
  }
  const wrong = firstWrongField(value, id);
  return wrong === null ? (value as Meta) : `meta.json has no sound ${wrong}`;
}

function firstWrongField(value: unknown, id: string): string | null {
  if (typeof value !== "object" || value === null) return "object";
  const meta = value as Partial<Record<keyof Meta, unknown>>;
  const isCount = (field: unknown) => Number.isSafeInteger(field) && (field as number) >= 0;
  if (meta.id !== id) return "id";
  for (const field of ["order", "bytes"] as const) if (!isCount(meta[field])) return field;
  if (!Number.isFinite(meta.createdMs)) return "createdMs";
  for (const field of ["filename", "tenant"] as const) if (typeof meta[field] !== "string") return field;
  if (!filePurposes.some((purpose) => purpose === meta.purpose)) return "purpose";
  return meta.expiresAfterS === null || isCount(meta.expiresAfterS) ? null : "expiresAfterS";
}
