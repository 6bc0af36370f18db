/** JSON text in pieces, so that a long answer can be written without the event loop standing still. */

/** List elements that are made or written in one piece. With 20 logprobs each they take about 2 ms. */
export const sliceLength = 64;
/** Numbers and short strings are written faster. */
const plainSliceLength = 1_024;

/** A list that comes into being slice by slice while it is written. */
export class Slices {
  readonly slices: Iterable<readonly unknown[]>;

  constructor(slices: Iterable<readonly unknown[]>) {
    this.slices = slices;
  }
}

/** A value that comes into being when it is written. */
export class Later {
  readonly make: () => unknown;

  constructor(make: () => unknown) {
    this.make = make;
  }
}

/** Cuts a list up, and makes something of each part as it is taken. */
export function* sliced<T, R>(list: ArrayLike<T>, make: (begin: number, end: number) => R): Generator<R> {
  for (let begin = 0; begin < list.length; begin += sliceLength) {
    yield make(begin, Math.min(list.length, begin + sliceLength));
  }
}

/**
 * What JSON.stringify would write, in pieces.
 * @param value Objects, lists, Slices and Later of what JSON can hold. Only the lists in it are cut up, not its
 *   strings and not the elements of Slices.
 */
export function* jsonText(value: unknown): Generator<string> {
  if (value instanceof Slices) {
    yield "[";
    let first = true;
    for (const slice of value.slices) {
      if (slice.length === 0) continue;
      const text = JSON.stringify(slice).slice(1, -1);
      yield first ? text : `,${text}`;
      first = false;
    }
    yield "]";
  } else if (value instanceof Later) {
    yield* jsonText(value.make());
  } else if (Array.isArray(value)) {
    if (typeof value[0] === "object") {
      for (const [i, element] of value.entries()) {
        yield i === 0 ? "[" : ",";
        yield* jsonText(element);
      }
      yield "]";
    } else {
      yield* jsonText(new Slices(plainSlices(value)));
    }
  } else if (typeof value === "object" && value !== null) {
    let before = "{";
    for (const [name, member] of Object.entries(value)) {
      if (member === undefined) continue;
      yield `${before}${JSON.stringify(name)}:`;
      yield* jsonText(member);
      before = ",";
    }
    yield before === "{" ? "{}" : "}";
  } else {
    yield JSON.stringify(value);
  }
}

function* plainSlices(list: readonly unknown[]): Generator<readonly unknown[]> {
  for (let begin = 0; begin < list.length; begin += plainSliceLength) {
    yield list.slice(begin, begin + plainSliceLength);
  }
}
