/**
 * Reads the directory of a zip archive whose entries are stored, not compressed: where in the file the
 * bytes of each entry lie. Nothing is extracted, and names are keys of a map, never paths. The central
 * directory is the truth; every claim of it is checked against the file and against the local headers,
 * because whoever maps a byte range believes it.
 * @see PKWARE's APPNOTE.TXT 6.3.10, sections 4.3 (records) and 4.5.3 (zip64).
 */
import type { FileHandle } from "node:fs/promises";
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";
import { readFully } from "./safetensors.js";

/** A shard has an entry per tensor and a handful more; the largest published ones have some thousands. */
export const maxZipEntries = 100_000;
/** That many entries with names as torch writes them, twice over. */
export const maxZipDirectoryBytes = 16 * 2 ** 20;

export interface ZipEntry {
  /** From the beginning of the file. */
  byteOffset: number;
  byteLength: number;
}

const endBytes = 22;
const endSignature = 0x06054b50;
const maxCommentBytes = 0xffff;
const locatorBytes = 20;
const locatorSignature = 0x07064b50;
const end64Bytes = 56;
const end64Signature = 0x06064b50;
const centralBytes = 46;
const centralSignature = 0x02014b50;
const localBytes = 30;
const localSignature = 0x04034b50;
const zip64Field = 1;
/** Written where the true value stands in a zip64 record. */
const elsewhere16 = 0xffff;
const elsewhere32 = 0xffffffff;
const encryptedFlags = 0x2041;

interface Archive {
  handle: FileHandle;
  file: string;
  byteLength: number;
}

/** Where the central directory lies, and what it should hold. */
interface Directory {
  byteOffset: number;
  byteLength: number;
  entryCount: number;
}

interface CentralEntry {
  name: string;
  nameBytes: Uint8Array;
  headerOffset: number;
  byteLength: number;
  /** Other than byteLength where it is compressed. */
  storedLength: number;
  flags: number;
  /** Of compression; 0 for none. */
  method: number;
}

/**
 * @param recognize Sees the names before the entries are checked, so that it can refuse an archive of
 *                  another kind as what it is.
 * @returns The entries by name, in the order of the central directory.
 * @throws RelayError invalid_model naming file, entry, value and what was expected.
 */
export async function readZipEntries(
  handle: FileHandle,
  file: string,
  byteLength: number,
  recognize: (names: string[]) => void,
): Promise<Map<string, ZipEntry>> {
  const archive = { handle, file, byteLength };
  const directory = await findDirectory(archive);
  const central = await readDirectory(archive, directory);
  recognize(central.map(({ name }) => name));
  const entries = new Map<string, ZipEntry>();
  for (const entry of central) {
    if (entries.has(entry.name)) fail(file, `entry ${printValue(entry.name)} is there twice`);
    entries.set(entry.name, await locate(archive, entry, directory.byteOffset));
  }
  checkOverlap(archive, central, entries);
  return entries;
}

async function findDirectory(archive: Archive): Promise<Directory> {
  const { file, byteLength } = archive;
  const tailBytes = Math.min(byteLength, endBytes + maxCommentBytes);
  const tail = await read(archive, byteLength - tailBytes, tailBytes);
  let end = tailBytes - endBytes;
  // The record's comment must reach to the end of the file: a signature inside a comment is no record.
  const isEnd = (at: number) =>
    tail.readUInt32LE(at) === endSignature && at + endBytes + tail.readUInt16LE(at + 20) === tailBytes;
  while (end >= 0 && !isEnd(end)) end--;
  if (end < 0) fail(file, "has no zip directory at its end: it is truncated or damaged");

  const endOffset = byteLength - tailBytes + end;
  const record = tail.subarray(end);
  const small = {
    disks: [record.readUInt16LE(4), record.readUInt16LE(6)],
    counts: [record.readUInt16LE(8), record.readUInt16LE(10)],
    byteLength: record.readUInt32LE(12),
    byteOffset: record.readUInt32LE(16),
  };
  const locator = end >= locatorBytes ? tail.subarray(end - locatorBytes, end) : null;
  const found =
    locator?.readUInt32LE() === locatorSignature
      ? await readEnd64(archive, locator, endOffset)
      : { ...small, limit: endOffset };
  return checkDirectory(file, found);
}

interface EndRecord {
  disks: number[];
  counts: number[];
  byteOffset: number;
  byteLength: number;
  /** Where the record itself begins: the directory ends before it. */
  limit: number;
}

async function readEnd64(archive: Archive, locator: Buffer, endOffset: number): Promise<EndRecord> {
  const { file } = archive;
  const limit = safe(locator.readBigUInt64LE(8), file, "offset of the zip64 directory record");
  if (limit + end64Bytes > endOffset - locatorBytes) {
    fail(file, `places its zip64 directory record at byte ${limit}, expected before ${endOffset}`);
  }
  const record = await read(archive, limit, end64Bytes);
  if (record.readUInt32LE() !== end64Signature) fail(file, `has no zip64 directory record at byte ${limit}`);
  const number = (at: number, what: string) => safe(record.readBigUInt64LE(at), file, what);
  return {
    disks: [record.readUInt32LE(16), record.readUInt32LE(20), locator.readUInt32LE(4)],
    counts: [number(24, "number of entries"), number(32, "number of entries")],
    byteLength: number(40, "length of the directory"),
    byteOffset: number(48, "offset of the directory"),
    limit,
  };
}

function checkDirectory(
  file: string,
  { disks, counts, byteOffset, byteLength, limit }: EndRecord,
): Directory {
  const entryCount = counts[0]!;
  if (disks.some((disk) => disk !== 0) || entryCount !== counts[1]) {
    fail(file, "is one part of a zip archive of several parts, expected a whole one");
  }
  if (entryCount > maxZipEntries) fail(file, `has ${entryCount} entries, expected at most ${maxZipEntries}`);
  if (byteLength > maxZipDirectoryBytes) {
    fail(file, `has a directory of ${byteLength} bytes, expected at most ${maxZipDirectoryBytes}`);
  }
  if (byteOffset + byteLength > limit) {
    fail(
      file,
      `places its directory at bytes ${byteOffset} to ${byteOffset + byteLength}, expected before ${limit}`,
    );
  }
  return { byteOffset, byteLength, entryCount };
}

async function readDirectory(archive: Archive, directory: Directory): Promise<CentralEntry[]> {
  const { file } = archive;
  const bytes = await read(archive, directory.byteOffset, directory.byteLength);
  const entries: CentralEntry[] = [];
  let position = 0;
  while (entries.length < directory.entryCount) {
    const header = bytes.subarray(position);
    if (header.length < centralBytes || header.readUInt32LE() !== centralSignature) {
      fail(file, `has a damaged directory: no entry ${entries.length} of ${directory.entryCount}`);
    }
    const [nameLength, extraLength] = [header.readUInt16LE(28), header.readUInt16LE(30)];
    const length = centralBytes + nameLength + extraLength + header.readUInt16LE(32);
    if (length > header.length) fail(file, `has a damaged directory: entry ${entries.length} is cut off`);
    entries.push(centralEntry(file, header, nameLength, extraLength));
    position += length;
  }
  if (position !== bytes.length) {
    fail(
      file,
      `has a directory of ${bytes.length} bytes, but its ${entries.length} entries take ${position}`,
    );
  }
  return entries;
}

function centralEntry(file: string, header: Buffer, nameLength: number, extraLength: number): CentralEntry {
  const nameBytes = header.subarray(centralBytes, centralBytes + nameLength);
  const name = nameBytes.toString("utf8");
  const entry = `entry ${printValue(name)}`;
  const [flags, method] = [header.readUInt16LE(8), header.readUInt16LE(10)];
  const extra = header.subarray(centralBytes + nameLength, centralBytes + nameLength + extraLength);
  const wide = wideNumbers(file, entry, extra);
  const number = (at: number, what: string): number => {
    const value = header.readUInt32LE(at);
    return value === elsewhere32 ? wide(what) : value;
  };
  // The order in which the zip64 field holds them.
  const byteLength = number(24, "size");
  const storedLength = number(20, "stored size");
  const headerOffset = number(42, "offset");
  const disk = header.readUInt16LE(34);
  if (disk !== 0 && disk !== elsewhere16) fail(file, `${entry} lies in another part of the archive`);
  return { name, nameBytes, headerOffset, byteLength, storedLength, flags, method };
}

/** Reads the entry's zip64 field from its beginning, a number with each call. */
function wideNumbers(file: string, entry: string, extra: Buffer): (what: string) => number {
  let field = extra.subarray(0, 0);
  for (let at = 0; at + 4 <= extra.length; at += 4 + extra.readUInt16LE(at + 2)) {
    if (extra.readUInt16LE(at) !== zip64Field) continue;
    field = extra.subarray(at + 4, at + 4 + extra.readUInt16LE(at + 2));
    break;
  }
  return (what) => {
    if (field.length < 8) fail(file, `${entry} lacks its zip64 ${what}`);
    const value = safe(field.readBigUInt64LE(), file, `${what} of ${entry}`);
    field = field.subarray(8);
    return value;
  };
}

/** The range of an entry's bytes: behind its local header, whose length stands nowhere else. */
async function locate(archive: Archive, entry: CentralEntry, limit: number): Promise<ZipEntry> {
  const { file } = archive;
  const { headerOffset, byteLength, storedLength, nameBytes, flags, method } = entry;
  const name = `entry ${printValue(entry.name)}`;
  if ((flags & encryptedFlags) !== 0) fail(file, `${name} is encrypted`);
  if (method !== 0) {
    fail(file, `${name} is compressed (method ${method}), expected stored bytes as torch.save writes them`);
  }
  if (byteLength !== storedLength) {
    fail(file, `${name} has ${byteLength} bytes, but ${storedLength} are stored, expected the same`);
  }
  const headerBytes = localBytes + nameBytes.length;
  if (headerOffset + headerBytes > limit) {
    fail(file, `${name} begins at byte ${headerOffset}, expected before the directory at ${limit}`);
  }
  const header = await read(archive, headerOffset, headerBytes);
  if (header.readUInt32LE() !== localSignature) fail(file, `${name} has no header at byte ${headerOffset}`);
  if (header.readUInt16LE(26) !== nameBytes.length || !header.subarray(localBytes).equals(nameBytes)) {
    fail(file, `${name} has another name in its own header at byte ${headerOffset}`);
  }
  const byteOffset = headerOffset + headerBytes + header.readUInt16LE(28);
  if (byteOffset + byteLength > limit) {
    fail(
      file,
      `${name} takes bytes ${byteOffset} to ${byteOffset + byteLength}, expected before the directory at ${limit}`,
    );
  }
  return { byteOffset, byteLength };
}

function checkOverlap({ file }: Archive, central: CentralEntry[], entries: Map<string, ZipEntry>): void {
  let end = 0;
  for (const { name, headerOffset } of [...central].sort((a, b) => a.headerOffset - b.headerOffset)) {
    if (headerOffset < end) {
      fail(
        file,
        `entry ${printValue(name)} begins at byte ${headerOffset}, inside the entry that ends at ${end}`,
      );
    }
    const { byteOffset, byteLength } = entries.get(name)!;
    end = byteOffset + byteLength;
  }
}

async function read({ handle, file }: Archive, byteOffset: number, byteLength: number): Promise<Buffer> {
  const bytes = Buffer.alloc(byteLength);
  await readFully(handle, bytes, byteOffset, file);
  return bytes;
}

function safe(value: bigint, file: string, what: string): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) fail(file, `has ${value} as ${what}, beyond any file`);
  return Number(value);
}

function fail(file: string, problem: string): never {
  throw new RelayError("invalid_model", `${file} ${problem}`);
}
