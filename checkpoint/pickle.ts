/**
 * A pickle machine that can only build plain containers. It knows the opcodes that Python's pickler
 * (protocols 2 to 4) writes for dict, list, tuple, str, int, float, bool and None; what a GLOBAL, a call or a
 * persistent id means is asked of its host, which answers from a fixed list. There is no import, no
 * attribute and no call into anything of ours, and every other opcode is refused by its name.
 *
 * Values may share parts and even hold themselves, as pickles may; who walks them must not recurse.
 */
import { RelayError } from "../common/errors.js";
import { printValue } from "../models/print.js";

/** A tensor costs about 100 bytes and 40 opcodes: these limits let some ten thousands into one file. */
export const maxPickleBytes = 16 * 2 ** 20;
export const maxPickleOpcodes = 1_000_000;
/** Every container, string and tensor of a pickle gets a memo entry. */
export const maxMemoEntries = 1_000_000;
/** A pickler hands dicts and lists over in batches of 1,000 items. */
export const maxStackDepth = 100_000;
/** Open marks, that is containers being filled: a state dict needs five. */
export const maxOpenMarks = 64;
/** Names of tensors are far shorter. */
export const maxStringBytes = 65_536;

export class PickleList {
  readonly items: PickleValue[] = [];
}

/** A dict, or an OrderedDict, which alone may carry attributes (they are dropped). */
export class PickleDict {
  readonly entries = new Map<string | number, PickleValue>();
  constructor(readonly ordered: boolean) {}
}

/** A name of Python, known to the host. It is never looked up anywhere. */
export class PickleGlobal {
  constructor(readonly name: string) {}
}

/** What the host made; the machine only carries it. */
export abstract class PickleObject {
  abstract readonly kind: string;
  /** The pickle may give it attributes, which are dropped. */
  readonly takesState: boolean = false;
}

/** Arrays are tuples. */
export type PickleValue =
  | null
  | boolean
  | number
  | string
  | readonly PickleValue[]
  | PickleList
  | PickleDict
  | PickleGlobal
  | PickleObject;

/** Says what the names in a pickle mean; each answer may be a refusal. */
export interface PickleHost {
  /** @returns Whether the dotted name may stand in a pickle. */
  knows(name: string): boolean;
  /** The value that a call stands for. @throws RelayError through `fail` */
  call(name: string, args: readonly PickleValue[], fail: Fail): PickleValue;
  /** The object of a persistent id. @throws RelayError through `fail` */
  persistent(id: PickleValue, fail: Fail): PickleValue;
}

export type Fail = (problem: string) => never;

/**
 * @param where Names file and entry in messages.
 * @returns The one value that the pickle holds.
 * @throws RelayError invalid_model with the byte at which the reader stopped.
 */
export function readPickle(bytes: Buffer, where: string, host: PickleHost): PickleValue {
  return new Machine(bytes, where, host).run();
}

/** A value in a few words, for messages; never its contents, which may have no end. */
export function describeValue(value: PickleValue | undefined): string {
  if (value === undefined) return "absent";
  if (Array.isArray(value)) return "a tuple";
  if (value instanceof PickleList) return "a list";
  if (value instanceof PickleDict) return value.ordered ? "an OrderedDict" : "a dict";
  if (value instanceof PickleGlobal) return value.name;
  if (value instanceof PickleObject) return value.kind;
  return printValue(value);
}

/** What each opcode does, under the names of Python's pickletools. */
const opcodes: ReadonlyMap<number, (machine: Machine) => void> = new Map([
  /* PROTO            */ [0x80, (m: Machine) => m.checkProtocol()],
  /* FRAME            */ [0x95, (m) => void m.take(8)],
  /* MARK             */ [0x28, (m) => m.mark()],
  /* NONE             */ [0x4e, (m) => m.push(null)],
  /* NEWTRUE          */ [0x88, (m) => m.push(true)],
  /* NEWFALSE         */ [0x89, (m) => m.push(false)],
  /* BININT           */ [0x4a, (m) => m.push(m.take(4).readInt32LE())],
  /* BININT1          */ [0x4b, (m) => m.push(m.byte())],
  /* BININT2          */ [0x4d, (m) => m.push(m.take(2).readUInt16LE())],
  /* LONG1            */ [0x8a, (m) => m.push(m.long(m.byte()))],
  /* BINFLOAT         */ [0x47, (m) => m.push(m.take(8).readDoubleBE())],
  /* SHORT_BINUNICODE */ [0x8c, (m) => m.push(m.text(m.byte()))],
  /* BINUNICODE       */ [0x58, (m) => m.push(m.text(m.uint32()))],
  /* EMPTY_TUPLE      */ [0x29, (m) => m.push([])],
  /* TUPLE            */ [0x74, (m) => m.push(m.popMark())],
  /* TUPLE1           */ [0x85, (m) => m.push(m.popMany(1))],
  /* TUPLE2           */ [0x86, (m) => m.push(m.popMany(2))],
  /* TUPLE3           */ [0x87, (m) => m.push(m.popMany(3))],
  /* EMPTY_LIST       */ [0x5d, (m) => m.push(new PickleList())],
  /* APPEND           */ [0x61, (m) => m.append(m.popMany(1))],
  /* APPENDS          */ [0x65, (m) => m.append(m.popMark())],
  /* EMPTY_DICT       */ [0x7d, (m) => m.push(new PickleDict(false))],
  /* SETITEM          */ [0x73, (m) => m.setItems(m.popMany(2))],
  /* SETITEMS         */ [0x75, (m) => m.setItems(m.popMark())],
  /* BINPUT           */ [0x71, (m) => m.put(m.byte())],
  /* LONG_BINPUT      */ [0x72, (m) => m.put(m.uint32())],
  /* MEMOIZE          */ [0x94, (m) => m.put(m.memo.size)],
  /* BINGET           */ [0x68, (m) => m.get(m.byte())],
  /* LONG_BINGET      */ [0x6a, (m) => m.get(m.uint32())],
  /* GLOBAL           */ [0x63, (m) => m.global(m.line(), m.line())],
  /* STACK_GLOBAL     */ [0x93, (m) => m.stackGlobal()],
  /* REDUCE           */ [0x52, (m) => m.reduce()],
  /* BUILD            */ [0x62, (m) => m.build()],
  /* BINPERSID        */ [0x51, (m) => m.persistent()],
]);
const stopOpcode = 0x2e;

/** Opcodes of other pickles, so that a refusal can say what stood there (Python's pickletools names). */
const refusedOpcodes: ReadonlyMap<number, string> = new Map([
  [0x30, "POP"],
  [0x31, "POP_MARK"],
  [0x32, "DUP"],
  [0x42, "BINBYTES"],
  [0x43, "SHORT_BINBYTES"],
  [0x46, "FLOAT"],
  [0x49, "INT"],
  [0x4c, "LONG"],
  [0x50, "PERSID"],
  [0x53, "STRING"],
  [0x54, "BINSTRING"],
  [0x55, "SHORT_BINSTRING"],
  [0x56, "UNICODE"],
  [0x64, "DICT"],
  [0x67, "GET"],
  [0x69, "INST"],
  [0x6c, "LIST"],
  [0x6f, "OBJ"],
  [0x70, "PUT"],
  [0x81, "NEWOBJ"],
  [0x82, "EXT1"],
  [0x83, "EXT2"],
  [0x84, "EXT4"],
  [0x8b, "LONG4"],
  [0x8d, "BINUNICODE8"],
  [0x8e, "BINBYTES8"],
  [0x8f, "EMPTY_SET"],
  [0x90, "ADDITEMS"],
  [0x91, "FROZENSET"],
  [0x92, "NEWOBJ_EX"],
  [0x96, "BYTEARRAY8"],
  [0x97, "NEXT_BUFFER"],
  [0x98, "READONLY_BUFFER"],
]);

class Machine {
  private position = 0;
  /** Where the opcode under way began, for messages. */
  private opcodeAt = 0;
  private readonly stack: PickleValue[] = [];
  /** Depths of the stack at the open marks. */
  private readonly marks: number[] = [];
  readonly memo = new Map<number, PickleValue>();
  private readonly utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

  constructor(
    private readonly bytes: Buffer,
    private readonly where: string,
    private readonly host: PickleHost,
  ) {}

  run(): PickleValue {
    // Only PROTO (0x80) may stand first: protocols 0 and 1 have no such opcode.
    if (this.byte() !== 0x80) this.fail("does not begin with its protocol, expected 2 to 4");
    this.checkProtocol();
    for (let count = 0; count < maxPickleOpcodes; count++) {
      this.opcodeAt = this.position;
      const opcode = this.byte();
      if (opcode === stopOpcode) return this.result();
      const step = opcodes.get(opcode);
      if (!step) this.refuse(opcode);
      step(this);
      if (this.stack.length > maxStackDepth) this.fail(`stacks more than ${maxStackDepth} values`);
    }
    return this.fail(`has more than ${maxPickleOpcodes} opcodes`);
  }

  private result(): PickleValue {
    if (this.marks.length > 0 || this.stack.length !== 1) {
      this.fail(
        `ends with ${this.stack.length} values and ${this.marks.length} open marks, expected one value`,
      );
    }
    if (this.position !== this.bytes.length) {
      this.fail(`ends, but ${this.bytes.length - this.position} bytes follow`);
    }
    return this.stack[0]!;
  }

  checkProtocol(): void {
    const protocol = this.byte();
    if (protocol < 2 || protocol > 4) this.fail(`has protocol ${protocol}, expected 2 to 4`);
  }

  private refuse(opcode: number): never {
    const name = refusedOpcodes.get(opcode) ?? `0x${opcode.toString(16).padStart(2, "0")}`;
    return this.fail(`has the opcode ${name}, expected tensors and plain containers only`);
  }

  mark(): void {
    if (this.marks.length === maxOpenMarks) this.fail(`opens more than ${maxOpenMarks} marks`);
    this.marks.push(this.stack.length);
  }

  stackGlobal(): void {
    const [module, name] = this.popMany(2);
    if (typeof module !== "string" || typeof name !== "string") {
      this.fail(`names a global by ${describeValue(module)} and ${describeValue(name)}, expected strings`);
    }
    this.global(module, name);
  }

  reduce(): void {
    const [callable, args] = this.popMany(2);
    if (!(callable instanceof PickleGlobal)) this.fail(`calls ${describeValue(callable)}, expected a name`);
    if (!Array.isArray(args)) {
      this.fail(`calls ${callable.name} with ${describeValue(args)}, expected a tuple`);
    }
    this.push(this.host.call(callable.name, args, this.fail));
  }

  persistent(): void {
    const [id] = this.popMany(1);
    this.push(this.host.persistent(id!, this.fail));
  }

  global(module: string, name: string): void {
    const dotted = `${module}.${name}`;
    if (!this.host.knows(dotted)) {
      this.fail(`names ${printValue(dotted)}, expected tensors and plain containers only`);
    }
    this.push(new PickleGlobal(dotted));
  }

  /** Sets attributes. Python's Module.state_dict() hangs its `_metadata` on the OrderedDict so: no weights. */
  build(): void {
    const [state] = this.popMany(1);
    const target = this.top();
    if (target instanceof PickleObject && target.takesState) return;
    if (!(target instanceof PickleDict && target.ordered && state instanceof PickleDict)) {
      this.fail(
        `sets attributes (${describeValue(state)}) of ${describeValue(target)}, expected an OrderedDict`,
      );
    }
  }

  append(items: PickleValue[]): void {
    const list = this.top();
    if (!(list instanceof PickleList)) this.fail(`appends to ${describeValue(list)}, expected a list`);
    for (const item of items) list.items.push(item);
  }

  setItems(items: PickleValue[]): void {
    const dict = this.top();
    if (!(dict instanceof PickleDict)) this.fail(`sets items of ${describeValue(dict)}, expected a dict`);
    if (items.length % 2 !== 0) this.fail(`sets ${items.length} keys and values, expected pairs`);
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i]!;
      if (typeof key !== "string" && typeof key !== "number") {
        this.fail(`has ${describeValue(key)} as a key, expected a string or a number`);
      }
      // A pickler writes each key once; the second would be where a lie could hide.
      if (dict.entries.has(key)) this.fail(`has the key ${printValue(key)} twice`);
      dict.entries.set(key, items[i + 1]!);
    }
  }

  put(index: number): void {
    if (index >= maxMemoEntries) this.fail(`has memo entry ${index}, expected fewer than ${maxMemoEntries}`);
    this.memo.set(index, this.top());
  }

  get(index: number): void {
    const value = this.memo.get(index);
    if (value === undefined) this.fail(`uses memo entry ${index}, which was never set`);
    this.push(value);
  }

  push(value: PickleValue): void {
    this.stack.push(value);
  }

  private top(): PickleValue {
    const [value] = this.popMany(1);
    this.push(value!);
    return value!;
  }

  /** The topmost values, the deepest first; never across an open mark. */
  popMany(count: number): PickleValue[] {
    const begin = this.stack.length - count;
    if (begin < (this.marks.at(-1) ?? 0)) this.fail(`takes ${count} values where fewer are`);
    return this.stack.splice(begin);
  }

  popMark(): PickleValue[] {
    const mark = this.marks.pop();
    if (mark === undefined) this.fail("closes a mark that was never opened");
    return this.stack.splice(mark);
  }

  /** A little-endian integer in two's complement. */
  long(length: number): number {
    const digits = this.take(length);
    if (length === 0) return 0;
    let value = 0n;
    for (let i = length - 1; i >= 0; i--) value = (value << 8n) | BigInt(digits[i]!);
    value = BigInt.asIntN(8 * length, value);
    const number = Number(value);
    if (!Number.isSafeInteger(number)) this.fail(`has the integer ${value}, expected less than 2^53`);
    return number;
  }

  text(length: number): string {
    if (length > maxStringBytes) {
      this.fail(`has a string of ${length} bytes, expected at most ${maxStringBytes}`);
    }
    try {
      return this.utf8.decode(this.take(length));
    } catch (cause) {
      if (cause instanceof RelayError) throw cause;
      return this.fail("has a string that is not UTF-8");
    }
  }

  /** A line of a GLOBAL. */
  line(): string {
    const end = this.bytes.indexOf(0x0a, this.position);
    if (end < 0) this.fail("ends inside a name");
    const text = this.text(end - this.position);
    this.position++;
    return text;
  }

  byte(): number {
    return this.take(1)[0]!;
  }

  uint32(): number {
    return this.take(4).readUInt32LE();
  }

  take(length: number): Buffer {
    const begin = this.position;
    if (begin + length > this.bytes.length) {
      this.fail(`is truncated: ${length} bytes wanted, ${this.bytes.length - begin} are left`);
    }
    this.position += length;
    return this.bytes.subarray(begin, this.position);
  }

  private readonly fail: Fail = (problem) => {
    throw new RelayError("invalid_model", `${this.where} ${problem} (byte ${this.opcodeAt})`);
  };
}
