/**
 * Which request kills the pipelines that compute it. A request that was on its way in several lost pipelines in
 * a row, without a token in between, is suspicious: it travels while those that wait for a pipeline stand back,
 * so that the next loss tells. Its companions of the earlier losses get on that way and are cleared. Pure.
 */

/** Lost pipelines in a row after which a request is suspicious, and after which it is set aside. */
const suspiciousDeaths = 2;
const poisonousDeaths = 3;

/** What is known of one request. */
export interface Conduct {
  /** Pipelines in a row that were lost with rows of it on their way, and no token since. */
  deaths: number;
  /** The pipeline of this epoch has it; else it waits for one. */
  travels: boolean;
}

export class Suspects<T extends Conduct> {
  /** The one whose first token all others wait for. */
  #onTrial: T | null = null;

  /** Whether new requests must wait. */
  get trial(): boolean {
    return this.#onTrial !== null;
  }

  /**
   * A pipeline was lost.
   * @param wasTravelling Whether rows of the request were on their way.
   * @returns Those that are to be set aside.
   */
  pipelineLost(requests: readonly T[], wasTravelling: (request: T) => boolean): T[] {
    this.#onTrial = null;
    for (const request of requests) {
      request.deaths = wasTravelling(request) ? request.deaths + 1 : 0;
      request.travels = false;
    }
    return requests.filter(({ deaths }) => deaths >= poisonousDeaths);
  }

  /** Those of the waiting requests that may travel now; they are marked so. */
  depart(requests: readonly T[]): T[] {
    if (this.#onTrial !== null) return [];
    const waiting = requests.filter(({ travels }) => !travels);
    const suspect = waiting.find(({ deaths }) => deaths >= suspiciousDeaths);
    const departing = suspect === undefined ? waiting : [suspect];
    this.#onTrial = suspect ?? null;
    for (const request of departing) request.travels = true;
    return departing;
  }

  /** The request has got on, or is over. @returns Whether others may depart now. */
  cleared(request: T): boolean {
    request.deaths = 0;
    if (this.#onTrial !== request) return false;
    this.#onTrial = null;
    return true;
  }
}
