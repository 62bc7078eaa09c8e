/**
 * What lib-write writes where, and onto which images.
 */

const KIBIBYTE = 1024;
const MEBIBYTE = 1024 * KIBIBYTE;

/** A sequence of equally long writes, which `qemu-img bench` can make too. */
export interface WritePattern {
  /** Writes. */
  count: number;
  /** Bytes of each. */
  bytes: number;
  /** Bytes from the start of one to that of the next; past the end it goes on from the start. */
  step: number;
  /** Bytes of the disk. */
  diskBytes: number;
  /** Writes before each flush; 0 for one flush at the end only. */
  flushEvery: number;
}

/** What is on the disk before. */
export type DiskState =
  /** Nothing is allocated. */
  | 'empty'
  /** All is allocated. */
  | 'full'
  /** All is allocated, and all of it is shared with a snapshot. */
  | 'snapshot'
  /** There is a snapshot, and all has been written anew since. */
  | 'written since snapshot';

/** Writing in one way to one kind of image. */
export interface WriteCase {
  name: string;
  clusterBytes: number;
  state: DiskState;
  pattern: WritePattern;
}

/** Disk of images that are full, and of sequential writing. */
const FULL_DISK_BYTES = 256 * MEBIBYTE;
const SEQUENTIAL_BYTES = 1024 * MEBIBYTE;
const BLOCK_BYTES = 4 * KIBIBYTE;
const REWRITES = 32 * 1024;
const FLUSHED_WRITES = 1024;
const FLUSH_EVERY = 8;

/** All cases, for both cluster sizes. */
export function writeCases(): WriteCase[] {
  return [64 * KIBIBYTE, 2 * MEBIBYTE].flatMap((clusterBytes) => {
    const size = clusterBytes >= MEBIBYTE ? '2 MiB' : '64 KiB';
    // Where nothing is allocated the disk can be large: each write is to a cluster of its own.
    const clusters = clusterBytes >= MEBIBYTE ? 4096 : 8192;
    const sparseDisk = clusters * clusterBytes;
    const fullClusters = FULL_DISK_BYTES / clusterBytes;
    const make = (name: string, state: DiskState, pattern: WritePattern): WriteCase => {
      const suffix = state === 'snapshot' || state === 'written since snapshot' ? ', snapshot' : '';
      return { name: `lib-write ${name}, ${size}${suffix}`, clusterBytes, state, pattern };
    };
    return [
      make('1M seq', 'empty', sequential(SEQUENTIAL_BYTES)),
      make('1M seq', 'snapshot', sequential(FULL_DISK_BYTES)),
      make('4K alloc', 'empty', random(clusters, sparseDisk)),
      make('4K alloc', 'snapshot', random(fullClusters, FULL_DISK_BYTES)),
      make('4K rewrite', 'full', random(REWRITES, FULL_DISK_BYTES)),
      make('4K rewrite', 'written since snapshot', random(REWRITES, FULL_DISK_BYTES)),
      make('4K alloc+flush', 'empty', flushed(FLUSHED_WRITES, sparseDisk)),
      make(
        '4K alloc+flush',
        'snapshot',
        flushed(Math.min(fullClusters, FLUSHED_WRITES), FULL_DISK_BYTES),
      ),
      make('4K rewrite+flush', 'full', flushed(4 * FLUSHED_WRITES, FULL_DISK_BYTES)),
    ];
  });
}

function sequential(diskBytes: number): WritePattern {
  const bytes = MEBIBYTE;
  return { count: diskBytes / bytes, bytes, step: bytes, diskBytes, flushEvery: 0 };
}

/** A part of the disk whose multiples, past its end and on from its start, lie evenly on it. */
const EVEN_STEP = 1 / (8 + 0.618034);

/**
 * Writes all over the disk in an order without locality, no block twice. Steps of 2 GiB and more
 * are too large for qemu-img bench.
 */
function random(writes: number, diskBytes: number): WritePattern {
  const blocks = diskBytes / BLOCK_BYTES;
  // Odd, and the number of blocks is a power of two: every block has its turn.
  const step = (Math.floor(blocks * EVEN_STEP) | 1) * BLOCK_BYTES;
  return { count: writes, bytes: BLOCK_BYTES, step, diskBytes, flushEvery: 0 };
}

function flushed(writes: number, diskBytes: number): WritePattern {
  return { ...random(writes, diskBytes), flushEvery: FLUSH_EVERY };
}

/** The guest offsets that a pattern writes to, in order. */
export function* offsetsOf({ count, step, diskBytes }: WritePattern): Generator<number> {
  for (let index = 0, offset = 0; index < count; index++) {
    yield offset;
    offset = (offset + step) % diskBytes;
  }
}
