/**
 * Which workers a pipeline that has no plan may have. Pure.
 *
 * 1. A worker keeps its place: as long as its pipeline waits, it waits for that pipeline.
 * 2. Spares go to the pipeline that lacks the fewest, then to the first: as many as can be are whole.
 * 3. Pipelines that have waited long for a lost worker put theirs together, and the first become whole. This
 *    comes before a pipeline with fewer stages: a whole one has more room and is as fast as it was planned.
 * 4. What nobody can become whole with goes to the first that waits, which may take fewer stages
 *    (pipeline-plan.ts).
 */
import type { PipelineId } from "../../common/ids.js";

/** A pipeline that waits for workers. */
export interface Claim {
  id: PipelineId;
  /** Workers of its last whole plan, in stage order; empty before the first. */
  seats: readonly string[];
  /** It has waited long enough for those of them that are away. */
  overdue: boolean;
}

export interface Allotment {
  /** Of each claim, in stage order: as many as stages are wanted, or fewer. */
  workers: ReadonlyMap<PipelineId, readonly string[]>;
  /** Workers that nobody waits for. */
  spares: readonly string[];
}

/**
 * @param claims In the order of their ids.
 * @param free Names of the workers that no plan holds, in the order in which they are to be taken.
 * @param stageCount Workers that a whole pipeline has.
 */
export function allot(claims: readonly Claim[], free: readonly string[], stageCount: number): Allotment {
  const spares = new Set(free);
  const workers = new Map(
    claims.map(({ id, seats }) => [id, new Set(seats.filter((name) => spares.delete(name)))]),
  );
  const lacking = ({ id }: Claim) => stageCount - workers.get(id)!.size;
  const fill = (claim: Claim, from: Set<string>) => {
    for (const name of [...from].slice(0, lacking(claim))) {
      from.delete(name);
      workers.get(claim.id)!.add(name);
    }
  };

  for (const claim of [...claims].sort((a, b) => lacking(a) - lacking(b))) {
    if (lacking(claim) <= spares.size) fill(claim, spares);
  }

  const overdue = claims.filter((claim) => claim.overdue);
  for (const claim of overdue) {
    if (lacking(claim) === 0) continue;
    // The last pipelines give first.
    const donors = overdue.filter((other) => other !== claim && lacking(other) > 0).reverse();
    const pools = [spares, ...donors.map(({ id }) => workers.get(id)!)];
    if (lacking(claim) > pools.reduce((sum, pool) => sum + pool.size, 0)) continue;
    for (const pool of pools) fill(claim, pool);
  }

  const first = [...overdue, ...claims].find((claim) => lacking(claim) > 0);
  if (first !== undefined) fill(first, spares);
  return {
    workers: new Map(claims.map(({ id, seats }) => [id, inStageOrder(workers.get(id)!, seats, free)])),
    spares: [...spares],
  };
}

/** Who was there keeps its stage, and its weights; others take the stages that are left. */
function inStageOrder(
  workers: ReadonlySet<string>,
  seats: readonly string[],
  order: readonly string[],
): string[] {
  const all = order.filter((name) => workers.has(name));
  if (seats.length === 0 || all.length < seats.length) return all;
  const others = all.filter((name) => !seats.includes(name));
  return seats.map((name) => (workers.has(name) ? name : others.shift()!));
}
