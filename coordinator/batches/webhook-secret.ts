/** The secret with which webhooks are signed: `whsec_` and base64, as Standard Webhooks writes it. */
import { randomBytes } from "node:crypto";
import { open, readFile } from "node:fs/promises";
import { join } from "node:path";
import { RelayError } from "../../common/errors.js";

const prefix = "whsec_";
/** As Standard Webhooks asks for. */
const keyBytesMin = 24;
const keyBytesMax = 64;
const madeBytes = 32;
const fileName = "webhook-secret";

/**
 * The key of the signatures.
 * @param file Null: one under the data directory, made when it is not there.
 * @throws RelayError invalid_configuration when there is none to be had; its text never holds what the file does.
 */
export async function webhookKey(file: string | null, data: string): Promise<Buffer> {
  if (file === null) return readKey(await ensureSecret(join(data, fileName)));
  return readKey(file);
}

/** Owner alone may read it. */
async function ensureSecret(file: string): Promise<string> {
  try {
    const handle = await open(file, "wx", 0o600);
    try {
      await handle.writeFile(`${prefix}${randomBytes(madeBytes).toString("base64")}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") {
      throw unfit(file, `cannot be written: ${(error as Error).message}`);
    }
  }
  return file;
}

async function readKey(file: string): Promise<Buffer> {
  let text: string;
  try {
    text = (await readFile(file, "utf8")).trim();
  } catch (error) {
    throw unfit(file, `cannot be read: ${(error as Error).message}`);
  }
  const encoded = text.startsWith(prefix) ? text.slice(prefix.length) : "";
  const key = /^[A-Za-z0-9+/]+={0,2}$/.test(encoded) ? Buffer.from(encoded, "base64") : Buffer.alloc(0);
  if (key.length >= keyBytesMin && key.length <= keyBytesMax) return key;
  throw unfit(file, `does not hold ${prefix} and ${keyBytesMin} to ${keyBytesMax} bytes in base64`);
}

function unfit(file: string, fault: string): RelayError {
  return new RelayError("invalid_configuration", `the webhook secret ${file} ${fault}`);
}
