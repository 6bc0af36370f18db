/**
 * The keys of the API, from the file of --api-keys-file. It is looked at again and again, so that keys can be added
 * and taken back while the process runs. Only their hashes are kept, and no message ever holds one.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { RelayError } from "../../common/errors.js";
import type { Logger } from "../../common/log.js";

/** Each request is compared with all of them. */
const maxKeys = 1_024;
const maxKeyLength = 512;
const maxFileBytes = 1024 * 1024;
/** How often the file is looked at. */
export const defaultCheckMs = 2_000;

export class ApiKeys {
  readonly #file: string;
  readonly #log: Logger;
  #digests: readonly Buffer[] = [];
  /** Of the file when it was read last. */
  #version = "";
  #checking = false;
  #timer: NodeJS.Timeout | undefined;

  private constructor(file: string, log: Logger) {
    this.#file = file;
    this.#log = log;
  }

  /**
   * Reads the file, and again whenever it has changed. What cannot be used then is told in the log, and the keys
   * from before stay.
   * @throws RelayError invalid_configuration for a file that cannot be read or holds no key.
   */
  static async open(file: string, log: Logger, checkMs = defaultCheckMs): Promise<ApiKeys> {
    const keys = new ApiKeys(file, log);
    await keys.#read();
    keys.#timer = setInterval(() => void keys.#check(), checkMs).unref();
    return keys;
  }

  get count(): number {
    return this.#digests.length;
  }

  /**
   * @param authorization The header or the metadata of that name.
   * @throws RelayError invalid_api_key when it does not carry one of the keys.
   */
  require(authorization: unknown): void {
    const key = typeof authorization === "string" ? /^bearer +(\S+) *$/i.exec(authorization)?.[1] : undefined;
    if (key === undefined) {
      throw new RelayError(
        "invalid_api_key",
        "no API key was sent: expected the header authorization: Bearer KEY",
      );
    }
    const digest = digestOf(key);
    let known = 0;
    // All of them: the time that it takes tells nothing of where one was found.
    for (const each of this.#digests) known |= Number(timingSafeEqual(each, digest));
    if (known === 0) throw new RelayError("invalid_api_key", "the API key is not one of this server's");
  }

  close(): void {
    clearInterval(this.#timer);
  }

  async #check(): Promise<void> {
    if (this.#checking) return;
    this.#checking = true;
    try {
      if ((await this.#versionNow()) === this.#version) return;
      await this.#read();
      this.#log.info({ keys: this.count }, "API keys were read again");
    } catch (error) {
      this.#log.error(
        { reason: (error as Error).message },
        "API keys could not be read again; those from before stay",
      );
    } finally {
      this.#checking = false;
    }
  }

  async #read(): Promise<void> {
    // Noted before the content: a change in between is seen at the next look, and a bad file is told of once.
    this.#version = await this.#versionNow();
    const text = await readFile(this.#file, "utf8").catch((cause: Error) => {
      throw unfit(this.#file, `cannot be read: ${cause.message}`, cause);
    });
    this.#digests = parseKeys(this.#file, text).map(digestOf);
  }

  /** A Secret that Kubernetes mounts is replaced by moving a link: the file itself becomes another one. */
  async #versionNow(): Promise<string> {
    try {
      const { size, mtimeMs, ino } = await stat(this.#file);
      if (size > maxFileBytes) throw new Error(`it has ${size} bytes, expected at most ${maxFileBytes}`);
      return `${size} ${mtimeMs} ${ino}`;
    } catch (cause) {
      throw unfit(this.#file, `cannot be read: ${(cause as Error).message}`, cause);
    }
  }
}

/** One key per line; blank lines and those that begin with # say nothing. */
function parseKeys(file: string, text: string): string[] {
  const keys: string[] = [];
  for (const [index, line] of text.split("\n").entries()) {
    const word = line.trim();
    if (word === "" || word.startsWith("#")) continue;
    if (!/^[\x21-\x7e]+$/.test(word) || word.length > maxKeyLength) {
      throw unfit(
        file,
        `line ${index + 1}: expected a key of 1 to ${maxKeyLength} ASCII characters without spaces`,
      );
    }
    keys.push(word);
  }
  if (keys.length === 0) throw unfit(file, "holds no key: expected one per line");
  if (keys.length > maxKeys) throw unfit(file, `holds ${keys.length} keys: expected at most ${maxKeys}`);
  return keys;
}

function digestOf(key: string): Buffer {
  return createHash("sha256").update(key).digest();
}

function unfit(file: string, fault: string, cause?: unknown): RelayError {
  return new RelayError("invalid_configuration", `the file of API keys ${file} ${fault}`, { cause });
}
