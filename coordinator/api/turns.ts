/**
 * Long work on the main thread, a few milliseconds at a time. The turns are shared: however many answers
 * are being written, between two turns of the event loop one of them goes on, for one share of time.
 */

/** How long one piece of work goes on before others get their turn. */
const shareMs = 4;

/** At most one for each open request. */
const waiting: (() => void)[] = [];

function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve);
    if (waiting.length === 1) setImmediate(goOn);
  });
}

function goOn(): void {
  waiting[0]!();
  // Only now: whoever comes while this turn is taken waits for the next one.
  setImmediate(() => {
    waiting.shift();
    if (waiting.length > 0) goOn();
  });
}

/** The items as they are made, each when its turn has come. */
export async function* inTurns<T>(items: Iterable<T>): AsyncGenerator<T> {
  await nextTurn();
  let begun = performance.now();
  for (const item of items) {
    yield item;
    if (performance.now() - begun < shareMs) continue;
    await nextTurn();
    begun = performance.now();
  }
}
