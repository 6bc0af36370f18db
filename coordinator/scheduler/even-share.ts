/**
 * Of how many members the next of several groups may have, so that the sizes differ by one at most. Groups go
 * and come back: what is left of the larger size is what those on their way have not taken.
 * @param sizes Of the groups on their way.
 * @returns 1 or more.
 */
export function evenShare(members: number, groups: number, sizes: Iterable<number>): number {
  const least = Math.floor(members / groups);
  let larger = members - least * groups;
  for (const size of sizes) if (size > least) larger--;
  return larger > 0 ? least + 1 : Math.max(1, least);
}
