/** What a server offers: exports by name, opened while somebody uses them. */

import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import { metaContextsOf } from './meta-contexts.ts';
import type { MetaContext } from './meta-contexts.ts';
import { padToSector } from './padded-device.ts';
import { NBD_MAX_STRING } from './protocol.ts';

/** A bitmap that tells which parts of an export have changed. */
export interface ExportBitmap {
  /** Clients ask for `qemu:dirty-bitmap:` and this. */
  name: string;
  /**
   * The parts that are marked, in order; those that end at `from` or before may be left out.
   * @throws {Qcow2Error} if it cannot be read
   */
  dirtyRanges(from: number): Iterable<{ offset: number; length: number }>;
}

/** One export of an NBD server. */
export interface NbdExport {
  /** Name that clients ask for: UTF-8, at most 4096 bytes, no NUL. */
  name: string;
  /** One line for people, shown by `nbdinfo --list`. */
  description?: string | undefined;
  /**
   * The device, or a function that opens it when the first client asks for it. A device that was
   * opened here is closed when its last client has gone; one that was given stays the caller's.
   * Clients see it with zeroes after its end if its size is not a multiple of 512.
   */
  device: BlockDevice | (() => BlockDevice);
  /** Whether clients may write to it, where the device can be written at all (default false). */
  writable?: boolean | undefined;
  /**
   * Changes the size of the device, durably, where clients may ask for that (`NBD_CMD_RESIZE`, an
   * extension of the protocol that is still an experiment; default: they may not). Throws, and changes
   * nothing, where the device cannot have that size.
   * @param size bytes, a multiple of 512
   */
  resize?: ((size: number) => void) | undefined;
  /** Bitmaps that clients can ask for. */
  bitmaps?: readonly ExportBitmap[] | undefined;
}

/** An export in use: give it back with {@link ExportTable.release}. */
export interface OpenExport {
  readonly name: string;
  readonly description: string;
  readonly device: BlockDevice;
  readonly isWritable: boolean;
  /** Changes its size; undefined where clients may not. */
  readonly resize: ((size: number) => void) | undefined;
  /** What can be asked about it. */
  readonly contexts: readonly MetaContext[];
  /** Whether the device was opened for its clients, and is closed after the last one. */
  readonly ownsDevice: boolean;
}

interface Entry extends OpenExport {
  device: BlockDevice;
  users: number;
}

/** The exports of one server. The first one is also the default, which has the empty name. */
export class ExportTable {
  readonly #exports = new Map<string, NbdExport>();
  readonly #open = new Map<string, Entry>();
  readonly #default: NbdExport;

  /**
   * @throws {Qcow2Error} `INVALID_OPTION` if there is no export, a name is used twice, or a name
   * or description is too long or contains NUL
   */
  constructor(exports: readonly NbdExport[]) {
    const [first] = exports;
    if (first === undefined) throw invalid('there is nothing to serve');
    this.#default = first;
    for (const item of exports) {
      checkText('name of an export', item.name);
      checkText(`description of export '${item.name}'`, item.description ?? '');
      if (this.#exports.has(item.name)) {
        throw invalid(`there are two exports with the name '${item.name}'`);
      }
      this.#exports.set(item.name, item);
    }
  }

  /** All exports, the default first. */
  list(): Iterable<NbdExport> {
    return this.#exports.values();
  }

  /**
   * An export and what can be asked about it, without opening it.
   * @param name '' for the default export
   */
  find(name: string): { name: string; contexts: MetaContext[] } | undefined {
    const item = this.#exports.get(name) ?? (name === '' ? this.#default : undefined);
    return item && { name: item.name, contexts: metaContextsOf(item.bitmaps ?? []) };
  }

  /**
   * Opens an export, or counts one user more for it.
   * @param name '' for the default export
   * @returns undefined if there is none of that name
   * @throws {Qcow2Error} whatever opening the device throws
   */
  acquire(name: string): OpenExport | undefined {
    const item = this.#exports.get(name) ?? (name === '' ? this.#default : undefined);
    if (item === undefined) return undefined;
    let entry = this.#open.get(item.name);
    if (entry === undefined) {
      const ownsDevice = typeof item.device === 'function';
      const device = padToSector(typeof item.device === 'function' ? item.device() : item.device);
      const description = item.description ?? '';
      const contexts = metaContextsOf(item.bitmaps ?? []);
      const isWritable = item.writable === true && !device.readOnly;
      const { name: itemName } = item;
      const resize = isWritable ? item.resize : undefined;
      const open = { name: itemName, description, device, isWritable, resize, contexts };
      entry = { ...open, users: 0, ownsDevice };
      this.#open.set(item.name, entry);
    }
    entry.users++;
    return entry;
  }

  /** Ends one use of an export; must be called once for each `acquire`. */
  release(used: OpenExport): void {
    const entry = this.#open.get(used.name);
    if (entry === undefined) return;
    entry.users--;
    if (entry.users > 0) return;
    this.#open.delete(used.name);
    if (entry.ownsDevice) entry.device.close();
  }
}

function checkText(what: string, text: string): void {
  if (text.includes('\0')) throw invalid(`the ${what} contains a NUL character`);
  const { length } = Buffer.from(text);
  if (length > NBD_MAX_STRING) {
    throw invalid(`the ${what} has ${length} bytes, more than NBD's ${NBD_MAX_STRING}`);
  }
}

function invalid(problem: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', problem);
}
