/** The secret with which webhooks are signed: `whsec_` and base64, as Standard Webhooks writes it. */
import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { RelayError } from "../../common/errors.js";
import { writeDurably } from "../files/durable.js";

const prefix = "whsec_";
/** As Standard Webhooks asks for. */
const keyBytesMin = 24;
const keyBytesMax = 64;
const madeBytes = 32;
const fileName = "webhook-secret";

/**
 * The key of the signatures.
 * @param file Null: one in the data directory, made when it is not there.
 * @throws RelayError invalid_configuration when there is none to be had; its text never holds what the file does.
 */
export async function webhookKey(file: string | null, data: string): Promise<Buffer> {
  if (file !== null) return parseSecret(file, await readSecret(file));
  const own = join(data, fileName);
  const text = await readSecret(own).catch((error: unknown) => {
    if (((error as Error).cause as NodeJS.ErrnoException | undefined)?.code === "ENOENT")
      return makeSecret(own);
    throw error;
  });
  return parseSecret(own, text);
}

async function readSecret(file: string): Promise<string> {
  try {
    return await readFile(file, "utf8");
  } catch (cause) {
    throw unfit(file, `cannot be read: ${(cause as Error).message}`, cause);
  }
}

/** Its owner alone may read it. Nobody ever finds half of it. */
async function makeSecret(file: string): Promise<string> {
  const text = `${prefix}${randomBytes(madeBytes).toString("base64")}\n`;
  try {
    await writeDurably(file, text);
  } catch (cause) {
    throw unfit(file, `cannot be written: ${(cause as Error).message}`, cause);
  }
  return text;
}

function parseSecret(file: string, text: string): Buffer {
  const word = text.trim();
  const encoded = word.startsWith(prefix) ? word.slice(prefix.length) : "";
  const key = /^[A-Za-z0-9+/]+={0,2}$/.test(encoded) ? Buffer.from(encoded, "base64") : Buffer.alloc(0);
  if (key.length >= keyBytesMin && key.length <= keyBytesMax) return key;
  throw unfit(file, `does not hold ${prefix} and ${keyBytesMin} to ${keyBytesMax} bytes in base64`);
}

function unfit(file: string, fault: string, cause?: unknown): RelayError {
  return new RelayError("invalid_configuration", `the webhook secret ${file} ${fault}`, { cause });
}
