/**
 * How stages that compute at the same time divide the memory and the arithmetic of their host: by max-min fairness
 * (Bertsekas, Gallager: Data Networks, 6.5.2). One that asks for less than an even share is not slowed down by its
 * neighbours: what is busy with arithmetic reads little, and leaves the memory to the others.
 */

/** What one stage takes while it computes alone, as a share of all that its host has. */
export interface Share {
  memory: number;
  arithmetic: number;
  /** Times that its arithmetic takes beside somebody else's, with a core for each: caches and clock are shared too. */
  crowding: number;
}

/**
 * What each gets of 1: its demand, if that is at most what an even division among those with larger demands leaves.
 * @param demands At least 0.
 */
export function fairShares(demands: readonly number[]): number[] {
  const shares = demands.slice();
  const ascending = demands.map((_, index) => index).sort((a, b) => demands[a]! - demands[b]!);
  let left = 1;
  ascending.forEach((index, taken) => {
    shares[index] = Math.min(demands[index]!, left / (demands.length - taken));
    left -= shares[index];
  });
  return shares;
}

/** How many times longer each computes than alone: by the resource of which it gets the least. */
export function slowdowns(shares: readonly Share[]): number[] {
  if (shares.length === 1) return [1];
  const memory = shares.map((share) => share.memory);
  const arithmetic = shares.map((share) => share.arithmetic);
  const [ofMemory, ofArithmetic] = [fairShares(memory), fairShares(arithmetic)];
  const times = (demand: number, share: number) => (demand > share ? demand / share : 1);
  return shares.map((_, index) =>
    Math.max(
      times(memory[index]!, ofMemory[index]!),
      times(arithmetic[index]!, ofArithmetic[index]!) * shares[index]!.crowding,
    ),
  );
}
