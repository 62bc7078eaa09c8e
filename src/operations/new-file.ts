/**
 * A file that is made for a new image, or an existing one that the image takes the place of.
 *
 * An existing file is emptied only after it is known that nobody uses it and that it is no part of
 * what the image will refer to. If the image is not finished, a file that is new is removed again,
 * and one that existed is left empty: never half an image.
 */

import { closeSync, constants, openSync, statSync, unlinkSync } from 'node:fs';
import { FileDevice } from '../device/file.ts';
import { hostError, Qcow2Error } from '../errors.ts';
import { lockFile } from '../host/locks.ts';
import type { LockRequest } from '../host/locks.ts';

/** How a {@link NewFile} is opened. */
export interface NewFileOptions {
  /** What is locked on it; undefined not to lock it. */
  lock: LockRequest | undefined;
  /** What must not be overwritten, by the identity of the file: a phrase for the error. */
  taken: ReadonlyMap<string, string>;
  /** Whether a finished file is on the disk (default true). */
  durable?: boolean;
}

const SECTOR_BYTES = 512;

/** See the head of this file. */
export class NewFile {
  /** Path that it was opened by. */
  readonly path: string;
  /** The open file. It grows as it is written. */
  readonly device: FileDevice;
  /** Whether the file did not exist before. */
  readonly isNew: boolean;
  /** Holds a block device, so that nobody mounts it meanwhile. */
  #hold: number | undefined;
  #isEmptied = false;

  /**
   * @throws {Qcow2Error} `HOST` if it cannot be made or opened; `REFUSED` if it is taken, or a block
   * device that is mounted or otherwise used; `LOCKED` if somebody uses it
   */
  constructor(path: string, { lock, taken, durable = true }: NewFileOptions) {
    this.path = path;
    this.isNew = makeFile(path);
    try {
      if (!this.isNew) this.#hold = holdBlockDevice(path);
      this.device = new FileDevice(path, { writable: true, growable: true });
      this.device.durable = durable;
      this.#prepare(lock, taken);
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  /** Removes all content; of a block device the start, by which a format is told. */
  empty(): void {
    this.#isEmptied = true;
    const { device } = this;
    if (device.isBlockDevice) {
      device.writeZeroes(0, Math.min(SECTOR_BYTES, device.size));
    } else if (device.size > 0) {
      device.resize(0);
    }
  }

  /** Closes the finished file, which is on the disk then unless it need not be. */
  finish(): void {
    try {
      this.device.close();
    } finally {
      this.#release();
    }
  }

  /** Gives the file up. @returns what became of it */
  abandon(): 'removed' | 'kept' {
    try {
      if (!this.isNew && this.#isEmptied) this.empty();
    } catch {
      // What made it fail is told already.
    }
    this.#close();
    this.#release();
    if (!this.isNew) return 'kept';
    try {
      unlinkSync(this.path);
      return 'removed';
    } catch {
      return 'kept';
    }
  }

  #prepare(lock: LockRequest | undefined, taken: ReadonlyMap<string, string>): void {
    const { device, path } = this;
    const other = taken.get(device.identity);
    if (other !== undefined) {
      throw new Qcow2Error('REFUSED', `the new image would overwrite ${other}`, {
        file: path,
        hint: 'nothing was written',
      });
    }
    if (lock !== undefined) this.#lock(lock);
    device.updateSize();
  }

  #lock(lock: LockRequest): void {
    const { device, path } = this;
    try {
      lockFile({ fd: device.descriptor, path }, lock);
    } catch (error) {
      // Nobody else knows of a file that was just made: it need not be possible to lock it.
      const isLocked = error instanceof Qcow2Error && error.code === 'LOCKED';
      if (!this.isNew || isLocked) throw error;
    }
  }

  #close(): void {
    try {
      // Undefined where opening it failed.
      (this.device as FileDevice | undefined)?.close();
    } catch {
      // Its content is given up.
    }
  }

  #release(): void {
    if (this.#hold !== undefined) closeSync(this.#hold);
    this.#hold = undefined;
  }
}

/** Makes a file that is not there yet. @returns whether it was made */
function makeFile(path: string): boolean {
  const { O_RDWR, O_CREAT, O_EXCL } = constants;
  try {
    closeSync(openSync(path, O_RDWR | O_CREAT | O_EXCL, 0o644));
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
      throw hostError('cannot create it', path, error);
    }
  }
  try {
    // A symbolic link to a file that does not exist: the file is left empty if it is not finished.
    const isMissing = statSync(path, { throwIfNoEntry: false }) === undefined;
    if (isMissing) closeSync(openSync(path, O_RDWR | O_CREAT, 0o644));
  } catch (error) {
    throw hostError('cannot create it', path, error);
  }
  return false;
}

/** With O_EXCL Linux refuses to open a block device that is mounted or part of another one. */
function holdBlockDevice(path: string): number | undefined {
  if (!statSync(path).isBlockDevice()) return undefined;
  try {
    return openSync(path, constants.O_RDWR | constants.O_EXCL | constants.O_NONBLOCK);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EBUSY') {
      throw hostError('cannot open for writing', path, error);
    }
    throw new Qcow2Error('REFUSED', 'the block device is mounted or in use', {
      file: path,
      cause: error,
    });
  }
}
