/**
 * Where everything is in the shared memory of a cluster cache.
 *
 * In order: words of the whole cache, the queue of decompression jobs, counters, the images that
 * are known, streams that are read in order, and then each pool: the locks of its sets, the words
 * of its slots, and the slots. Words are Int32 and only touched with Atomics, except those of a slot
 * that a lock or the slot's state protects.
 */

import { assert } from '../../util/assert.ts';
import { alignUp } from '../../util/bytes.ts';

/** Words of the whole cache. */
export const HeaderWord = {
  /** {@link MAGIC}. */
  magic: 0,
  poolCount: 1,
  /** Number of the next thread that attaches. */
  nextOwner: 2,
  /** Number of the next image. */
  nextImage: 3,
  /** Decompression threads that run. */
  helpers: 4,
  /** Not 0 once compressed data was met, so that decompression threads are wanted. */
  wanted: 5,
  queueLock: 6,
  queueHead: 7,
  queueTail: 8,
  /** Decompression threads that sleep until there is a job. */
  sleepers: 9,
  streamsLock: 10,
  streamTick: 13,
  /** Not 0 once decompression threads are to end. */
  ending: 14,
  imagesLock: 11,
  /** Always 0: what threads wait for that only want to wait a moment. */
  never: 12,
} as const;

/** Words of a pool in the header. */
export const PoolWord = { clusterSize: 0, sets: 1, ways: 2 } as const;

/** Words of a slot. */
export const SlotWord = {
  /** A {@link SlotState}. */
  state: 0,
  /** Threads that use the slot: while there are any it keeps its cluster. */
  pins: 1,
  /** What it is for: the image, and the host offset in two halves. */
  image: 2,
  offsetHigh: 3,
  offsetLow: 4,
  /** How soon it may go, 0 to 3; and {@link READ_AHEAD} or {@link ASKED_FOR}. */
  use: 5,
  /** Where in the cluster the last read of it ended. */
  next: 6,
  /** The thread that fills it. */
  owner: 7,
  /** Stream that it was read ahead for, plus 1; 0 for none. */
  stream: 8,
  /** How many compressed bytes there are. */
  length: 9,
  /** The job of filling it: descriptor, place in that file in two halves, type of compression. */
  descriptor: 10,
  positionHigh: 11,
  positionLow: 12,
  compression: 13,
  /** The thread that posted the job. */
  poster: 14,
} as const;

/** Flag of {@link SlotWord.use}: it was read ahead, and nobody has asked for it so far. */
export const READ_AHEAD = 4;
/** Flag of {@link SlotWord.use}: it was asked for, and not read so far. */
export const ASKED_FOR = 8;

/** What a slot is at. */
export const SlotState = {
  /** Empty; only who holds the lock of its set may take it. */
  FREE: 0,
  /** To be filled by whoever comes first. */
  QUEUED: 1,
  /** Being filled by one thread. */
  FILLING: 2,
  FILLED: 3,
  /** Being filled with what is not wanted any more. */
  STALE: 4,
} as const;

/** Stands for "no slot". */
export const NO_SLOT = -1;

/** Words of a slot, a cache line. */
export const SLOT_WORDS = 16;
/** Entries of the queue of jobs. */
export const QUEUE_ENTRIES = 1024;
/** Sets of counters: each thread has one, until there are more threads. */
export const COUNTER_LANES = 64;
/** Numbers of a set of counters. */
export const LANE_NUMBERS = 8;
/** Images that are known by what they are. */
export const IMAGE_ENTRIES = 64;
/** Bytes of the name of such an image. */
export const IMAGE_NAME_BYTES = 120;
/** Words of an image: its number, the length of its name, the name. */
export const IMAGE_WORDS = 2 + IMAGE_NAME_BYTES / 4;
/** Streams that are followed. */
export const STREAM_ENTRIES = 32;
/** Numbers of a stream. */
export const STREAM_NUMBERS = 13;

const MAGIC = 0x71633201;
const MAX_POOLS = 16;
const FIRST_POOL_WORD = 16;
const POOL_WORDS = 8;
const HEADER_WORDS = FIRST_POOL_WORD + MAX_POOLS * POOL_WORDS;
const PAGE_BYTES = 4096;
/** Slots of a set, more or less. */
const WAYS = 16;

/** Byte offsets of the fixed parts. */
export const Part = {
  queue: HEADER_WORDS * 4,
  counters: HEADER_WORDS * 4 + QUEUE_ENTRIES * 4,
  streams: HEADER_WORDS * 4 + QUEUE_ENTRIES * 4 + COUNTER_LANES * LANE_NUMBERS * 8,
  images:
    HEADER_WORDS * 4 +
    QUEUE_ENTRIES * 4 +
    COUNTER_LANES * LANE_NUMBERS * 8 +
    STREAM_ENTRIES * STREAM_NUMBERS * 8,
} as const;

const FIXED_BYTES = alignUp(Part.images + IMAGE_ENTRIES * IMAGE_WORDS * 4, 8);

/** One pool: the slots of one size. */
export interface PoolLayout {
  /** Bytes of a slot. */
  clusterSize: number;
  sets: number;
  /** Slots of a set. */
  ways: number;
  /** Number of its first slot among those of all pools. */
  firstSlot: number;
  /** Index of the first set's lock, and of the first slot's first word. */
  lockWord: number;
  slotWord: number;
  /** Byte offset of its first slot. */
  dataOffset: number;
}

/** How a cache is laid out. */
export interface CacheLayout {
  pools: PoolLayout[];
  /** Bytes of all. */
  bytes: number;
}

/** Lays a cache out so that it does not take more than `budgetBytes`, if that holds anything. */
export function planLayout(budgetBytes: number, clusterSizes: readonly number[]): CacheLayout {
  const sizes = [...new Set(clusterSizes)].sort((a, b) => a - b);
  assert(sizes.length <= MAX_POOLS, 'there are not that many cluster sizes');
  const share = (budgetBytes - FIXED_BYTES) / sizes.length;
  const shapes = sizes.map((clusterSize) => {
    // Locks and the rounding to whole pages come to less than a page each.
    const perSlot = clusterSize + SLOT_WORDS * 4;
    const slots = Math.max(0, Math.floor((share - 2 * PAGE_BYTES) / perSlot));
    const sets = Math.max(1, Math.round(slots / WAYS));
    return { clusterSize, sets, ways: Math.floor(slots / sets) };
  });
  return place(shapes);
}

/** The layout of a cache that another thread has made. */
export function readLayout(words: Int32Array): CacheLayout {
  assert(words[HeaderWord.magic] === MAGIC, 'the buffer is that of a cluster cache');
  const shapes = Array.from({ length: words[HeaderWord.poolCount]! }, (_, index) => {
    const at = FIRST_POOL_WORD + index * POOL_WORDS;
    return {
      clusterSize: words[at + PoolWord.clusterSize]!,
      sets: words[at + PoolWord.sets]!,
      ways: words[at + PoolWord.ways]!,
    };
  });
  return place(shapes);
}

/** Writes a layout into memory that is all zeroes. */
export function writeLayout(words: Int32Array, { pools }: CacheLayout): void {
  words[HeaderWord.magic] = MAGIC;
  words[HeaderWord.poolCount] = pools.length;
  pools.forEach(({ clusterSize, sets, ways }, index) => {
    const at = FIRST_POOL_WORD + index * POOL_WORDS;
    words[at + PoolWord.clusterSize] = clusterSize;
    words[at + PoolWord.sets] = sets;
    words[at + PoolWord.ways] = ways;
  });
}

function place(shapes: readonly Pick<PoolLayout, 'clusterSize' | 'sets' | 'ways'>[]): CacheLayout {
  const pools: PoolLayout[] = [];
  let bytes = FIXED_BYTES;
  let firstSlot = 0;
  for (const { clusterSize, sets, ways } of shapes) {
    if (ways === 0) continue;
    const slots = sets * ways;
    const lockOffset = bytes;
    const slotOffset = alignUp(lockOffset + sets * 4, SLOT_WORDS * 4);
    const dataOffset = alignUp(slotOffset + slots * SLOT_WORDS * 4, PAGE_BYTES);
    const at = { lockWord: lockOffset / 4, slotWord: slotOffset / 4, dataOffset };
    pools.push({ clusterSize, sets, ways, firstSlot, ...at });
    bytes = dataOffset + slots * clusterSize;
    firstSlot += slots;
  }
  return { pools, bytes };
}
