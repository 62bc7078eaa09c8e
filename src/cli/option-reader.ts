/**
 * Block options as QEMU has them: a flat list of dotted names, taken apart node by node. What
 * nobody took in the end is no option of its node's driver.
 */

import { Qcow2Error } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { parseSize } from './size.ts';

/** A value as it was given. */
export type OptionValue = string | number | boolean | null;

/** Values by their dotted names. */
export type OptionValues = Map<string, OptionValue>;

/** What an option can be: a switch, a number of bytes, any text, or one of several words. */
type OptionType = 'switch' | 'size' | 'text' | readonly string[];

/** The options of a driver, without those of the nodes below it. */
export type OptionTable = Readonly<Record<string, OptionType>>;

const NODE_OPTIONS: OptionTable = {
  'node-name': 'text',
  'read-only': 'switch',
  'auto-read-only': 'switch',
  'force-share': 'switch',
  'cache.direct': 'switch',
  'cache.no-flush': 'switch',
  discard: ['ignore', 'off', 'unmap', 'on'],
  'detect-zeroes': ['off', 'on', 'unmap'],
};

const OVERLAP_CHECKS = ['none', 'constant', 'cached', 'all'];

/** Of the driver qcow2. */
export const QCOW2_OPTIONS: OptionTable = {
  ...NODE_OPTIONS,
  'lazy-refcounts': 'switch',
  'pass-discard-request': 'switch',
  'pass-discard-snapshot': 'switch',
  'pass-discard-other': 'switch',
  'overlap-check': OVERLAP_CHECKS,
  'overlap-check.template': OVERLAP_CHECKS,
  'overlap-check.main-header': 'switch',
  'overlap-check.active-l1': 'switch',
  'overlap-check.active-l2': 'switch',
  'overlap-check.refcount-table': 'switch',
  'overlap-check.refcount-block': 'switch',
  'overlap-check.snapshot-table': 'switch',
  'overlap-check.inactive-l1': 'switch',
  'overlap-check.inactive-l2': 'switch',
  'overlap-check.bitmap-directory': 'switch',
  'cache-size': 'size',
  'l2-cache-size': 'size',
  'l2-cache-entry-size': 'size',
  'refcount-cache-size': 'size',
  'cache-clean-interval': 'size',
};

/** Of the driver raw. Those that say which part it is are read by {@link OptionReader.window}. */
export const RAW_OPTIONS: OptionTable = NODE_OPTIONS;

/** Of the drivers file and host_device. */
export const FILE_OPTIONS: OptionTable = {
  ...NODE_OPTIONS,
  filename: 'text',
  aio: ['threads', 'native', 'io_uring'],
  'aio-max-batch': 'size',
  locking: ['on', 'off', 'auto'],
  'drop-cache': 'switch',
  'x-check-cache-dropped': 'switch',
};

/** Which part of a file it is: options of raw. */
const WINDOW_OPTIONS: OptionTable = { offset: 'size', size: 'size' };
const CHILD_OPTIONS: Readonly<Record<string, readonly string[]>> = {
  qcow2: ['file.…', 'backing.…', 'data-file.…'],
  raw: ['offset', 'size', 'file.…'],
};

const ON = ['on', 'yes', 'true', 'y'];
const OFF = ['off', 'no', 'false', 'n'];

/** Values of the options of one node. */
export interface NodeValues {
  /** Of a switch. */
  flag(name: string): boolean | undefined;
  /** In bytes. */
  bytes(name: string): number | undefined;
  /** As it stands. */
  text(name: string): string | undefined;
}

/** The driver of a node, and its options. */
interface NodeDriver {
  driver: string;
  table: OptionTable;
}

/** The options of one node. All nodes of an image share what is left. */
export class OptionReader {
  readonly #left: OptionValues;
  readonly #text: string;
  readonly #prefix: string;
  /** Drivers by the prefix of their node. */
  readonly #drivers: Map<string, NodeDriver>;
  #hasDriver = false;
  #windowAsGiven: Readonly<Record<string, OptionValue>> = {};

  /** @param text what the options were given as, for messages */
  constructor(values: OptionValues, text: string, parent?: { of: OptionReader; name: string }) {
    this.#left = values;
    this.#text = text;
    this.#prefix = parent === undefined ? '' : `${parent.of.#prefix}${parent.name}.`;
    this.#drivers = parent === undefined ? new Map<string, NodeDriver>() : parent.of.#drivers;
  }

  /** Whether {@link driver} found one. */
  get hasDriver(): boolean {
    return this.#hasDriver;
  }

  /** Takes the name of the driver. */
  driver(): string | undefined {
    const driver = this.take('driver') ?? undefined;
    this.#hasDriver = driver !== undefined;
    return driver;
  }

  /** Takes one value. */
  take(name: string): string | null | undefined {
    const key = this.#prefix + name;
    const value = this.#left.get(key);
    this.#left.delete(key);
    if (typeof value === 'boolean') return value ? 'on' : 'off';
    return typeof value === 'number' ? String(value) : value;
  }

  /**
   * The options of a node below this one; undefined if there are none.
   * @throws {Qcow2Error} `INVALID_OPTION` if it is a reference to a node that exists elsewhere
   */
  child(name: string): OptionReader | undefined {
    const reference = this.take(name);
    if (reference !== undefined) {
      const problem = `Cannot find device='${reference}' nor node-name='${reference}'`;
      const hint = `give the file by its name: ${this.#prefix}${name}.filename=NAME`;
      throw this.error('INVALID_OPTION', problem, { hint });
    }
    const prefix = `${this.#prefix}${name}.`;
    const hasAny = [...this.#left.keys()].some((key) => key.startsWith(prefix));
    return hasAny ? new OptionReader(this.#left, this.#text, { of: this, name }) : undefined;
  }

  /**
   * Takes the options of a driver.
   * @throws {Qcow2Error} `INVALID_OPTION` for values that cannot be
   */
  read(driver: string, table: OptionTable): NodeValues {
    this.#drivers.set(this.#prefix, { driver, table });
    const values = new Map<string, string>();
    for (const [name, type] of Object.entries(table)) {
      const value = this.take(name);
      if (value === undefined || value === null) continue;
      this.#check(name, type, value);
      values.set(name, value);
    }
    return {
      flag: (name) => (values.has(name) ? ON.includes(values.get(name)!) : undefined),
      bytes: (name) => (values.has(name) ? parseSize(values.get(name)!, name) : undefined),
      text: (name) => values.get(name),
    };
  }

  /**
   * Takes the options that say which part of a file it is, if there are any.
   * @throws {Qcow2Error} `INVALID_OPTION` for a size that is no multiple of 512
   */
  window(): { offset: number; length: number | undefined } | undefined {
    const given = Object.keys(WINDOW_OPTIONS).flatMap((name) => {
      const value = this.#left.get(this.#prefix + name);
      return value === undefined ? [] : [[name, value] as const];
    });
    this.#windowAsGiven = Object.fromEntries(given);
    const [offset, length] = Object.entries(WINDOW_OPTIONS).map(([name, type]) => {
      const value = this.take(name);
      if (value === undefined || value === null) return undefined;
      this.#check(name, type, value);
      return parseSize(value, name);
    });
    if (length !== undefined && length % 512 !== 0) {
      throw this.error('INVALID_OPTION', 'Specified size is not multiple of 512');
    }
    if (offset === undefined && length === undefined) return undefined;
    return { offset: offset ?? 0, length };
  }

  /** The values that {@link window} took. */
  windowAsGiven(): Readonly<Record<string, OptionValue>> {
    return this.#windowAsGiven;
  }

  /**
   * Finds what nobody took.
   * @throws {Qcow2Error} `INVALID_OPTION`, or `UNSUPPORTED` for options of encryption
   */
  finish(): void {
    const [key] = this.#left.keys();
    if (key === undefined) return;
    const prefixes = [...this.#drivers.keys()].filter((prefix) => key.startsWith(prefix));
    const prefix = prefixes.reduce((a, b) => (b.length > a.length ? b : a), '');
    const { driver, table } = this.#drivers.get(prefix) ?? { driver: 'qcow2', table: {} };
    const name = key.slice(prefix.length);
    if (driver === 'qcow2' && name.startsWith('encrypt.')) {
      throw this.error('UNSUPPORTED', 'encrypted images are neither read nor written');
    }
    const problem = Object.hasOwn(CHILD_OPTIONS, driver)
      ? `Block format '${driver}' does not support the option '${name}'`
      : `Block protocol '${driver}' doesn't support the option '${name}'`;
    const known = ['driver', ...(CHILD_OPTIONS[driver] ?? []), ...Object.keys(table)];
    throw this.error('INVALID_OPTION', problem, { hint: `it has ${known.join(', ')}` });
  }

  /** An error that names what was given. */
  error(code: ErrorCode, problem: string, { hint }: { hint?: string } = {}): Qcow2Error {
    return new Qcow2Error(code, problem, { file: this.#text, hint });
  }

  #check(name: string, type: OptionType, value: string): void {
    if (type === 'text') return;
    if (type === 'switch') {
      if ([...ON, ...OFF].includes(value)) return;
      throw this.error('INVALID_OPTION', `Parameter '${name}' expects 'on' or 'off'`);
    }
    if (type === 'size') {
      try {
        parseSize(value, name);
        return;
      } catch {
        const problem = `Parameter '${name}' expects a non-negative number below 2^64`;
        const hint = 'it is in bytes, or has a suffix k, M, G, T, P or E';
        throw this.error('INVALID_OPTION', problem, { hint });
      }
    }
    if (type.includes(value)) return;
    const problem =
      name === 'discard'
        ? 'Invalid discard option'
        : `Parameter '${name}' does not accept value '${value}'`;
    throw this.error('INVALID_OPTION', problem, { hint: `it can be ${type.join(', ')}` });
  }
}

/**
 * Takes a list apart: `name=value` items with commas between them; a comma in a value is doubled. A
 * switch may come without a value, or with `no` before its name.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` if it is a name rather than a list
 */
export function parseOptionList(text: string): OptionValues {
  const values: OptionValues = new Map();
  const items = text.replaceAll(',,', '\0').split(',');
  for (const [index, raw] of items.entries()) {
    const item = raw.replaceAll('\0', ',');
    const end = item.indexOf('=');
    if (end >= 0) {
      values.set(item.slice(0, end), item.slice(end + 1));
    } else if (item !== '') {
      if (index === 0) throw notAList(text, item);
      const isOff = item.startsWith('no');
      values.set(isOff ? item.slice(2) : item, !isOff);
    }
  }
  return values;
}

function notAList(text: string, name: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', `Cannot find device='${name}' nor node-name='${name}'`, {
    file: text,
    hint: 'with --image-opts an image is given as file.filename=NAME',
  });
}

/**
 * The values of a `json:` name by their dotted names.
 * @throws {Qcow2Error} `INVALID_OPTION` if it is not a JSON object
 */
export function flattenJson(name: string): OptionValues {
  let document: unknown;
  try {
    document = JSON.parse(name.slice('json:'.length));
  } catch (cause) {
    const { message } = cause as Error;
    const problem = `Could not parse the JSON options: ${message}`;
    throw new Qcow2Error('INVALID_OPTION', problem, { file: name, cause });
  }
  if (typeof document !== 'object' || document === null || Array.isArray(document)) {
    throw new Qcow2Error('INVALID_OPTION', 'Invalid JSON object given', { file: name });
  }
  const values: OptionValues = new Map();
  const pending: [prefix: string, value: object][] = [['', document]];
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const [prefix, value] = next;
    for (const [key, member] of Object.entries(value) as [string, unknown][]) {
      if (typeof member === 'object' && member !== null) pending.push([`${prefix}${key}.`, member]);
      else values.set(prefix + key, member as OptionValue);
    }
  }
  return values;
}
