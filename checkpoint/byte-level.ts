/** The vocabulary of byte-level BPE, as files write it: tokens of bytes in visible characters, and their ids. */
import { printValue } from "../models/print.js";
import { isObject } from "./json.js";

export type Refuse = (problem: string) => never;

/** The tokens in the order of their ids, which leave no gap. */
export function orderedTokens(vocab: unknown, where: string, refuse: Refuse): string[] {
  if (!isObject(vocab)) return refuse(`${where} is ${printValue(vocab)}, expected {token: id}`);
  const entries = Object.entries(vocab);
  const tokens = new Array<string | undefined>(entries.length).fill(undefined);
  for (const [token, id] of entries) {
    if (!Number.isSafeInteger(id) || (id as number) < 0 || (id as number) >= entries.length) {
      refuse(
        `${where} gives ${printValue(token)} the id ${printValue(id)}, expected one below ${entries.length}`,
      );
    }
    if (tokens[id as number] !== undefined) refuse(`${where} has the id ${printValue(id)} twice`);
    tokens[id as number] = token;
  }
  return tokens as string[];
}

/**
 * Byte-level BPE writes each byte as a visible character: those of Latin-1 that are visible as themselves,
 * the others in order from U+0100 on (as GPT-2 does).
 */
const byteOfCharacter: ReadonlyMap<string, number> = new Map(
  (() => {
    const isVisible = (byte: number) =>
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
    let next = 0x100;
    return Array.from({ length: 256 }, (_, byte): [string, number] => [
      String.fromCharCode(isVisible(byte) ? byte : next++),
      byte,
    ]);
  })(),
);

/** A token's bytes, one per character U+0000 to U+00FF. */
export function bytesOfToken(token: string, where: string, refuse: Refuse): string {
  let bytes = "";
  for (const character of token) {
    const byte = byteOfCharacter.get(character);
    if (byte === undefined)
      refuse(`${where} has the token ${printValue(token)}, expected bytes as characters`);
    bytes += String.fromCharCode(byte!);
  }
  return bytes;
}
