/** Reads what earlier processes left in the ledger, page by page, before anything new is admitted. */
import type { Redis } from "ioredis";
import type { Logger } from "../../common/log.js";
import type { GenerationRequest, TokenIds } from "../inference.js";
import { canReplay } from "../output/replay.js";
import { readRecord } from "./check-record.js";
import { maxTokensPerRequest, tokensFromBytes } from "./decided-tokens.js";
import { asideTtlS, type LedgerKeys } from "./ledger-keys.js";
import type { LedgerEntry } from "./queue.js";

/** Keys that Redis looks at per page, and records that are fetched at once: one may have several MiB. */
const scanCount = 512;
const recordsAtOnce = 16;
/** More than a coordinator admits at the same time; what is beyond waits for the next start. */
const maxRecords = 20_000;

interface ReadOptions {
  tokenCount: number;
  log: Logger;
}

/** @returns The requests in the order of acceptance. */
export async function readLedger(
  redis: Redis,
  keys: LedgerKeys,
  options: ReadOptions,
): Promise<LedgerEntry[]> {
  const { records, tokens } = await scan(redis, keys);
  const ids = records.slice(0, maxRecords);
  if (ids.length < records.length) {
    const message = "more requests in the ledger than are taken up";
    options.log.error({ count: records.length, most: maxRecords }, message);
  }
  const entries: LedgerEntry[] = [];
  for (let begin = 0; begin < ids.length; begin += recordsAtOnce) {
    entries.push(...(await readPage(redis, keys, ids.slice(begin, begin + recordsAtOnce), options)));
  }
  await forgetStrays(redis, tokens, new Set(records));
  return entries.sort((a, b) => acceptedAtMs(a) - acceptedAtMs(b));
}

const acceptedAtMs = ({ request }: LedgerEntry): number => request.accepted?.atMs ?? 0;

/** @returns Ids of records, and the keys of tokens with the id that they belong to. */
async function scan(
  redis: Redis,
  keys: LedgerKeys,
): Promise<{ records: string[]; tokens: Map<string, string> }> {
  // A scan may give a key twice.
  const records = new Set<string>();
  const tokens = new Map<string, string>();
  let cursor = "0";
  do {
    const [next, found] = await redis.scan(cursor, "MATCH", keys.pattern, "COUNT", scanCount);
    for (const key of found) {
      const owner = keys.ownerOf(key);
      if (owner?.kind === "record") records.add(owner.id);
      if (owner?.kind === "tokens") tokens.set(key, owner.id);
    }
    cursor = next;
  } while (cursor !== "0");
  return { records: [...records], tokens };
}

async function readPage(
  redis: Redis,
  keys: LedgerKeys,
  ids: string[],
  { tokenCount, log }: ReadOptions,
): Promise<LedgerEntry[]> {
  const texts = await redis.mget(ids.map((id) => keys.record(id)));
  const entries: LedgerEntry[] = [];
  for (const [i, text] of texts.entries()) {
    // Its time was over.
    if (text === null) continue;
    const id = ids[i]!;
    const key = keys.record(id);
    let request: GenerationRequest;
    try {
      request = readRecord(text, tokenCount);
      if (request.id !== id) throw new Error("id: another one than the key's");
    } catch (error) {
      log.warn({ key, reason: (error as Error).message }, "a ledger record cannot be read: it is set aside");
      await redis.multi().rename(key, keys.aside(id)).expire(keys.aside(id), asideTtlS).exec();
      continue;
    }
    entries.push({ request, decided: await readTokens(redis, keys, request, tokenCount) });
  }
  return entries;
}

async function readTokens(
  redis: Redis,
  keys: LedgerKeys,
  request: GenerationRequest,
  tokenCount: number,
): Promise<TokenIds[]> {
  if (!canReplay(request)) return request.choices.map(() => []);
  const pipeline = redis.pipeline();
  for (const choice of request.choices.keys()) pipeline.getBuffer(keys.tokens(request.id, choice));
  const results = (await pipeline.exec()) ?? [];
  let left = maxTokensPerRequest;
  return request.choices.map((_, choice) => {
    const [error, bytes] = results[choice] ?? [null, null];
    if (error !== null || !Buffer.isBuffer(bytes)) return [];
    const tokens = tokensFromBytes(bytes, tokenCount, left);
    left -= tokens.length;
    return tokens;
  });
}

/** Tokens whose request has ended, or could not be read. */
async function forgetStrays(redis: Redis, tokens: Map<string, string>, records: Set<string>): Promise<void> {
  const strays = [...tokens].flatMap(([key, id]) => (records.has(id) ? [] : [key]));
  for (let begin = 0; begin < strays.length; begin += scanCount) {
    await redis.del(strays.slice(begin, begin + scanCount));
  }
}
