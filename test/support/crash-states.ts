/**
 * What a power cut may leave of the files of a log: everything that was done before the last
 * completed flush of a file, and of what was done to it afterwards anything, in parts of a sector.
 */

import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import type { Random } from './random.ts';
import type { HostOperation, LoggedOperation } from './recording-file.ts';

/** Disks write a sector whole or not at all. */
const SECTOR_BYTES = 512;

/** One file while the log is replayed. */
interface ReplayedFile {
  /** What is safe. */
  durable: GrowableMemoryDevice;
  /** What is there as long as the power is. */
  current: GrowableMemoryDevice;
  /** What was done since the last flush, in order. */
  unflushed: HostOperation[];
}

/** Replays a log and tells what a power cut may leave. */
export class CrashStates {
  readonly #log: readonly LoggedOperation[];
  readonly #files: ReplayedFile[];
  #position = 0;

  /** @param initial what the files hold, and is safe, before the log begins */
  constructor(log: readonly LoggedOperation[], initial: readonly Uint8Array[]) {
    this.#log = log;
    this.#files = initial.map((bytes) => ({
      durable: new GrowableMemoryDevice(bytes),
      current: new GrowableMemoryDevice(bytes),
      unflushed: [],
    }));
  }

  /** How many operations of the log have been done. */
  get position(): number {
    return this.#position;
  }

  /** How many of them could still be lost. */
  get unflushedCount(): number {
    return this.#files.reduce((sum, { unflushed }) => sum + unflushed.length, 0);
  }

  /** Replays on, until `position` operations have been done. */
  advanceTo(position: number): void {
    while (this.#position < position) {
      const { file: index, operation } = this.#log[this.#position++]!;
      const file = this.#files[index]!;
      if (operation.kind === 'flush') {
        for (const flushed of file.unflushed) apply(file.durable, flushed);
        file.unflushed = [];
      } else {
        apply(file.current, operation);
        file.unflushed.push(operation);
      }
    }
  }

  /** The files with everything done. Views of memory that changes as the replay goes on. */
  complete(): Uint8Array[] {
    return this.#files.map(({ current }) => current.bytes);
  }

  /** The files with what is safe and a random choice of the rest, torn at sectors. */
  torn(random: Random): Uint8Array[] {
    return this.#files.map(({ durable, current, unflushed }) => {
      if (unflushed.length === 0) return current.bytes;
      const file = new GrowableMemoryDevice(durable.bytes);
      const keeps = chooser(unflushed.length, random);
      unflushed.forEach((operation, index) => {
        const fate = keeps(index);
        if (fate === 'kept') apply(file, operation);
        else if (fate === 'torn') applyTorn(file, operation, random);
        else if (random.oneIn(4)) grow(file, operation);
      });
      return file.bytes;
    });
  }
}

type Fate = 'kept' | 'torn' | 'lost';

/** A way to choose which of `count` operations are kept. Different bugs want different ways. */
function chooser(count: number, random: Random): (index: number) => Fate {
  const chosen = random.below(count);
  const tears = random.oneIn(2);
  const some: Fate = tears ? 'torn' : 'kept';
  switch (random.below(6)) {
    case 0:
      return (index) => (index === chosen ? 'lost' : 'kept');
    case 1:
      return (index) => (index === chosen ? some : 'lost');
    case 2:
      // The disk was in the middle of it.
      return (index) => (index < chosen ? 'kept' : index === chosen ? 'torn' : 'lost');
    case 3:
      // The order turned around.
      return (index) => (index > chosen ? 'kept' : index === chosen ? 'torn' : 'lost');
    case 4:
      return () => (random.oneIn(2) ? some : 'lost');
    default:
      return () => random.pick(['kept', 'torn', 'lost'] as const);
  }
}

function apply(file: GrowableMemoryDevice, operation: HostOperation): void {
  switch (operation.kind) {
    case 'write':
      file.write(operation.bytes, operation.offset);
      break;
    case 'writeZeroes':
      file.writeZeroes(operation.offset, operation.length);
      break;
    case 'discard': {
      // A truncation before it may have been lost or kept.
      const end = Math.min(operation.offset + operation.length, file.size);
      if (end > operation.offset) file.discard(operation.offset, end - operation.offset);
      break;
    }
    case 'resize':
      file.resize(operation.size);
      break;
    case 'flush':
      break;
  }
}

/** Does an operation in some of its sectors only. */
function applyTorn(file: GrowableMemoryDevice, operation: HostOperation, random: Random): void {
  if (operation.kind === 'resize' || operation.kind === 'flush') {
    if (random.oneIn(2)) apply(file, operation);
    return;
  }
  const { kind, offset } = operation;
  const length = kind === 'write' ? operation.bytes.length : operation.length;
  // Either each sector for itself, or the sectors up to some point.
  const cut = random.oneIn(2) ? random.below(Math.ceil(length / SECTOR_BYTES) + 1) : undefined;
  let sector = 0;
  for (let done = 0; done < length; sector++) {
    const at = offset + done;
    const count = Math.min(SECTOR_BYTES - (at % SECTOR_BYTES), length - done);
    if (cut === undefined ? random.oneIn(2) : sector < cut) {
      if (kind === 'write') {
        file.write(operation.bytes.subarray(done, done + count), at);
      } else {
        apply(file, { kind, offset: at, length: count });
      }
    }
    done += count;
  }
}

/** The file has the length that an operation gave it, though its bytes were lost. */
function grow(file: GrowableMemoryDevice, operation: HostOperation): void {
  if (operation.kind !== 'write' && operation.kind !== 'writeZeroes') return;
  const length = operation.kind === 'write' ? operation.bytes.length : operation.length;
  const end = operation.offset + length;
  if (end > file.size) file.resize(end);
}
