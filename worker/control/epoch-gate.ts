/**
 * Which leader and which plan this worker obeys. Workers are the arbiters of leadership: they follow
 * the highest term they have seen, and within it the newest plan. Pure.
 */
import { compareEpochs, type Epoch } from "../../common/ids.js";

export class EpochGate {
  #highestTerm = 0;
  #newest: Epoch = { term: 0, plan: 0 };

  /** Highest term ever obeyed. */
  get highestTerm(): number {
    return this.#highestTerm;
  }

  /** Newest epoch that was assigned or released. */
  get newest(): Epoch {
    return this.#newest;
  }

  /** False for a leader of an older term than one already obeyed. */
  admitTerm(term: number): boolean {
    if (term < this.#highestTerm) return false;
    this.#highestTerm = term;
    return true;
  }

  /** False unless the epoch is newer than any before it. */
  admitAssign(epoch: Epoch): boolean {
    if (epoch.term < this.#highestTerm || compareEpochs(epoch, this.#newest) <= 0) return false;
    this.#accept(epoch);
    return true;
  }

  /** False for the release of an older epoch than the newest. */
  admitRelease(epoch: Epoch): boolean {
    if (epoch.term < this.#highestTerm || compareEpochs(epoch, this.#newest) < 0) return false;
    this.#accept(epoch);
    return true;
  }

  #accept(epoch: Epoch): void {
    this.#highestTerm = epoch.term;
    this.#newest = epoch;
  }
}
