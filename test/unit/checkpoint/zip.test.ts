/** The directory of the zip archive that torch.save writes: whatever is wrong with it is named. */
import { describe, it } from "vitest";
import { maxZipDirectoryBytes, maxZipEntries } from "../../../checkpoint/zip.js";
import { pickle, zipBytes } from "./torch-fixture.js";
import { expectRefusal } from "./torch-reading.js";

const { dict } = pickle;

describe("the zip directory", () => {
  const item = { name: "archive/data.pkl", data: pickle.file(dict()) };
  it.each<[string, Buffer, string]>([
    ["a compressed entry", zipBytes([{ ...item, method: 8 }]), '"archive/data.pkl" is compressed (method 8)'],
    ["an encrypted entry", zipBytes([{ ...item, flags: 1 }]), "is encrypted"],
    [
      "an entry of two sizes",
      zipBytes([item], {
        edit: ({ directory: bytes }) => void bytes.writeUInt8(1, 46 + item.name.length + 4),
      }),
      "has 1 bytes, but 6 are stored",
    ],
    [
      "two entries of a name",
      zipBytes([item, ...Array(2).fill({ name: "archive/x", data: Buffer.alloc(3) })]),
      '"archive/x" is there twice',
    ],
    [
      "another name in the local header",
      zipBytes([{ ...item, localName: "archive/data.pk2" }]),
      "another name",
    ],
    ["an entry larger than the file", zipBytes([{ ...item, size: 2 ** 40 }]), "before the directory"],
    [
      "an entry over the next one",
      zipBytes([
        { ...item, size: 100 },
        { name: "archive/x", data: Buffer.alloc(200) },
      ]),
      '"archive/x" begins at byte',
    ],
    [
      "no directory",
      Buffer.concat([Buffer.from("PK\x03\x04", "latin1"), Buffer.alloc(99)]),
      "no zip directory",
    ],
    [
      "a count beyond the directory",
      zipBytes([item], {
        edit: ({ end64 }) => {
          for (const at of [24, 32]) end64.writeBigUInt64LE(3n, at);
        },
      }),
      "no entry 1 of 3",
    ],
    [
      "a count beyond all bounds",
      zipBytes([item], {
        edit: ({ end64 }) => {
          for (const at of [24, 32]) end64.writeBigUInt64LE(2n ** 40n, at);
        },
      }),
      `at most ${maxZipEntries}`,
    ],
    [
      "a directory beyond all bounds",
      zipBytes([item], { edit: ({ end64 }) => void end64.writeBigUInt64LE(2n ** 40n, 40) }),
      `at most ${maxZipDirectoryBytes}`,
    ],
    [
      "a directory beyond the file",
      zipBytes([item], { edit: ({ end64 }) => void end64.writeBigUInt64LE(2n ** 40n, 48) }),
      "places its directory at bytes 1099511627776",
    ],
    [
      "numbers beyond 2^53",
      zipBytes([item], { edit: ({ end64 }) => void end64.writeBigUInt64LE(2n ** 63n, 48) }),
      "beyond any file",
    ],
    [
      "a zip64 record beyond the file",
      zipBytes([item], { edit: ({ end64 }) => void end64.writeBigUInt64LE(2n ** 40n, 64) }),
      "zip64 directory record at byte 1099511627776",
    ],
    [
      "no zip64 record where it should be",
      zipBytes([item], { edit: ({ end64 }) => void end64.writeUInt32LE(0) }),
      "no zip64 directory record",
    ],
    [
      "no zip64 numbers where they should be",
      zipBytes([item], {
        edit: ({ directory: bytes }) => void bytes.writeUInt16LE(2, 46 + item.name.length),
      }),
      "lacks its zip64 size",
    ],
    [
      "an entry behind the directory",
      zipBytes([item], {
        edit: ({ directory: bytes }) => void bytes.writeBigUInt64LE(150n, 46 + item.name.length + 20),
      }),
      '"archive/data.pkl" begins at byte 150, expected before the directory at 70',
    ],
    [
      "an entry in another part of the archive",
      zipBytes([item], { edit: ({ directory: bytes }) => void bytes.writeUInt16LE(3, 34) }),
      "another part",
    ],
    [
      "a part of an archive",
      zipBytes([item], { zip64: false, edit: ({ end }) => void end.writeUInt16LE(1, 4) }),
      "several parts",
    ],
    [
      "bytes behind its entries",
      zipBytes([item], {
        edit: ({ end64 }) => {
          for (const at of [24, 32]) end64.writeBigUInt64LE(0n, at);
        },
      }),
      "its 0 entries take 0",
    ],
  ])("%s", async (_, bytes, message) => {
    await expectRefusal(bytes, message);
  });
});
