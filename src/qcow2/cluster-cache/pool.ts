/**
 * The slots of a cluster cache that have one size: looking clusters up, giving slots to new ones.
 *
 * A cluster can only be in the slots of one set, which its place in the file decides; each set has a
 * lock, which is held for as long as it takes to look at those few slots. Bytes are copied and
 * decompressed without locks: a slot that is pinned, or not filled yet, keeps its cluster.
 *
 * Which cluster goes is decided by re-reference interval prediction: each slot has a number from 0
 * (will be needed soon) to 3 (go first). A new cluster has 2. Reading on in a cluster where the last
 * read ended says nothing; once it was read to its end, it has 3. Any other read of it makes it 0.
 * Where nobody in the set has 3, all grow older. So a scan drops its own clusters, and not those that
 * are used again and again.
 */

import type { Counters } from './counters.ts';
import { Counter } from './counters.ts';
import { ASKED_FOR, NO_SLOT, READ_AHEAD, SLOT_WORDS, SlotState, SlotWord } from './layout.ts';
import type { PoolLayout } from './layout.ts';
import type { CacheMemory } from './memory.ts';

/** What {@link ClusterPool.acquire} found; `slot` says where. */
export const Found = {
  /** No slot is to be had now: decompress elsewhere. */
  NOTHING: 0,
  /** The cluster. Release the slot after use. */
  CLUSTER: 1,
  /** A slot to fill: call `filled`, then release it. */
  ROOM: 2,
  /** Another thread fills it: `wait`, and release it. */
  BUSY: 3,
} as const;

/** One of {@link Found}. */
export type Found = (typeof Found)[keyof typeof Found];

/** What {@link ClusterPool.post} did. */
export const Posted = {
  /** There is no room. */
  NO: 0,
  /** The cluster is there, or on its way. */
  PRESENT: 1,
  /** `slot` waits for whoever claims it. */
  YES: 2,
} as const;

/** One of {@link Posted}. */
export type Posted = (typeof Posted)[keyof typeof Posted];

/**
 * Which cluster: the image's number, and where in the image's file how many compressed bytes are.
 * (Damaged images may have the same start with different ends, of which only one may be readable.)
 */
export interface ClusterKey {
  image: number;
  hostOffset: number;
  length: number;
}

/** How a cluster is decompressed, for any thread of the process. */
export interface JobSource {
  /** Open file of the process. */
  descriptor: number;
  /** Where the compressed bytes start in it. */
  position: number;
  /** Number of the compression type. */
  compression: number;
}

/** What a decompression thread has to do. */
export interface DecompressionJob extends JobSource {
  /** Compressed bytes. */
  length: number;
}

/** Told how reading ahead went. */
export interface ReadAheadFeedback {
  wasted(stream: number): void;
}

const { NOTHING, CLUSTER, ROOM, BUSY } = Found;
const { FREE, QUEUED, FILLING, FILLED, STALE } = SlotState;
const NEW = 2;
const GO_FIRST = 3;
const AGE_MASK = 3;
/** Stands for every length. */
const ANY_LENGTH = -1;
const TWO_32 = 2 ** 32;
/** How long closing a file waits for jobs that read it; see {@link ClusterPool.quiesce}. */
const QUIESCE_MS = 1000;

/** See the head of this file. */
export class ClusterPool {
  /** Bytes of a slot. */
  readonly clusterSize: number;
  readonly slots: number;
  /** Number of its first slot among those of all pools. */
  readonly firstSlot: number;
  /** What the last {@link acquire} or {@link post} is about. */
  slot = NO_SLOT;
  readonly #memory: CacheMemory;
  readonly #words: Int32Array;
  readonly #layout: PoolLayout;
  readonly #counters: Counters;
  readonly #feedback: ReadAheadFeedback;
  readonly #views: (Uint8Array | undefined)[];

  constructor(
    layout: PoolLayout,
    memory: CacheMemory,
    { counters, feedback }: { counters: Counters; feedback: ReadAheadFeedback },
  ) {
    this.clusterSize = layout.clusterSize;
    this.slots = layout.sets * layout.ways;
    this.firstSlot = layout.firstSlot;
    this.#layout = layout;
    this.#memory = memory;
    this.#words = memory.words;
    this.#counters = counters;
    this.#feedback = feedback;
    this.#views = new Array<Uint8Array | undefined>(this.slots);
  }

  /** The bytes of a slot. */
  bytes(slot: number): Uint8Array {
    const { clusterSize } = this;
    const offset = this.#layout.dataOffset + slot * clusterSize;
    return (this.#views[slot] ??= new Uint8Array(this.#memory.buffer, offset, clusterSize));
  }

  /** Looks a cluster up, and finds a slot for it if it is not there. */
  acquire(key: ClusterKey): Found {
    const set = this.#setOf(key.image, key.hostOffset);
    const lock = this.#layout.lockWord + set;
    this.slot = NO_SLOT;
    if (!this.#memory.lock(lock)) return NOTHING;
    try {
      const found = this.#find(set, key, key.length);
      if (found !== NO_SLOT) {
        this.slot = found;
        Atomics.add(this.#words, this.#word(found) + SlotWord.pins, 1);
        return this.#enter(found);
      }
      const slot = this.#makeRoom(set, true);
      if (slot === NO_SLOT) return NOTHING;
      this.slot = slot;
      this.#assign(slot, key, NEW | ASKED_FOR);
      const at = this.#word(slot);
      this.#words[at + SlotWord.owner] = this.#memory.owner;
      Atomics.store(this.#words, at + SlotWord.pins, 1);
      Atomics.store(this.#words, at + SlotWord.state, FILLING);
      return ROOM;
    } finally {
      this.#memory.unlock(lock);
    }
  }

  /**
   * Offers a cluster to whoever decompresses in advance, unless it is there.
   * @param stream that it is read ahead for; -1 if it has been asked for
   */
  post(key: ClusterKey, source: JobSource, stream: number): Posted {
    const set = this.#setOf(key.image, key.hostOffset);
    const lock = this.#layout.lockWord + set;
    this.slot = NO_SLOT;
    if (!this.#memory.lock(lock)) return Posted.NO;
    try {
      if (this.#find(set, key, key.length) !== NO_SLOT) return Posted.PRESENT;
      const slot = this.#makeRoom(set, false);
      if (slot === NO_SLOT) return Posted.NO;
      this.slot = slot;
      this.#assign(slot, key, NEW | (stream < 0 ? ASKED_FOR : READ_AHEAD));
      const words = this.#words;
      const at = this.#word(slot);
      words[at + SlotWord.stream] = stream + 1;
      words[at + SlotWord.descriptor] = source.descriptor;
      words[at + SlotWord.positionHigh] = Math.floor(source.position / TWO_32);
      words[at + SlotWord.positionLow] = source.position | 0;
      words[at + SlotWord.compression] = source.compression;
      words[at + SlotWord.poster] = this.#memory.owner;
      Atomics.store(words, at + SlotWord.state, QUEUED);
      return Posted.YES;
    } finally {
      this.#memory.unlock(lock);
    }
  }

  /** Takes a slot that was posted, to fill it; undefined if somebody else has, or will not need it. */
  claim(slot: number): DecompressionJob | undefined {
    const words = this.#words;
    const at = this.#word(slot);
    if (Atomics.compareExchange(words, at + SlotWord.state, QUEUED, FILLING) !== QUEUED) {
      return undefined;
    }
    words[at + SlotWord.owner] = this.#memory.owner;
    if ((words[at + SlotWord.use]! & READ_AHEAD) !== 0) {
      this.#counters.add(Counter.readAheadBytes, this.clusterSize);
    }
    return {
      descriptor: words[at + SlotWord.descriptor]!,
      position:
        words[at + SlotWord.positionHigh]! * TWO_32 + (words[at + SlotWord.positionLow]! >>> 0),
      length: words[at + SlotWord.length]!,
      compression: words[at + SlotWord.compression]!,
    };
  }

  /** Takes back what was posted and not claimed. */
  withdraw(slot: number): void {
    Atomics.compareExchange(this.#words, this.#word(slot) + SlotWord.state, QUEUED, FREE);
  }

  /** Ends the filling of a slot; `isGood` says whether it holds the cluster now. */
  filled(slot: number, isGood: boolean): void {
    const words = this.#words;
    const at = this.#word(slot) + SlotWord.state;
    const before = Atomics.compareExchange(words, at, FILLING, isGood ? FILLED : FREE);
    if (before === STALE) Atomics.store(words, at, FREE);
    Atomics.notify(words, at);
  }

  /**
   * Waits until the thread that fills a slot has done so, for so many milliseconds at most.
   * @returns whether the slot holds the cluster
   */
  wait(slot: number, timeoutMs: number): boolean {
    const at = this.#word(slot) + SlotWord.state;
    if (Atomics.load(this.#words, at) === FILLING) {
      Atomics.wait(this.#words, at, FILLING, timeoutMs);
    }
    return Atomics.load(this.#words, at) === FILLED;
  }

  /** Whether a slot holds its cluster by now. */
  isFilled(slot: number): boolean {
    return Atomics.load(this.#words, this.#word(slot) + SlotWord.state) === FILLED;
  }

  /**
   * Gives up a slot that another thread should have filled by now: nobody finds it any more. If that
   * thread lives, it frees the slot.
   */
  giveUp(slot: number): void {
    Atomics.compareExchange(this.#words, this.#word(slot) + SlotWord.state, FILLING, STALE);
  }

  /** Lets a slot be used for something else. */
  release(slot: number): void {
    Atomics.sub(this.#words, this.#word(slot) + SlotWord.pins, 1);
  }

  /** Notes a read of a pinned slot: counts it, and decides how long the cluster stays. */
  used(slot: number, start: number, end: number): void {
    const words = this.#words;
    const at = this.#word(slot);
    // Threads may overwrite what others note here; that costs at most a cluster its place.
    const use = words[at + SlotWord.use]!;
    const isFirst = use > AGE_MASK;
    this.#counters.add((use & ASKED_FOR) !== 0 ? Counter.misses : Counter.hits, 1);
    if ((use & READ_AHEAD) !== 0) this.#counters.add(Counter.readAheadHits, 1);
    const goesOn = isFirst || start === words[at + SlotWord.next];
    let age = use & AGE_MASK;
    if (!goesOn) age = 0;
    else if (end === this.clusterSize && age === NEW) age = GO_FIRST;
    words[at + SlotWord.use] = age;
    words[at + SlotWord.next] = end;
  }

  /**
   * Forgets a cluster: its compressed bytes are about to be given up.
   * @returns false if that could not be done
   */
  forget(image: number, hostOffset: number): boolean {
    const set = this.#setOf(image, hostOffset);
    const lock = this.#layout.lockWord + set;
    if (!this.#memory.lock(lock)) return false;
    try {
      const key = { image, hostOffset };
      for (let slot; (slot = this.#find(set, key, ANY_LENGTH)) !== NO_SLOT;) {
        this.#drop(this.#word(slot) + SlotWord.state);
      }
      return true;
    } finally {
      this.#memory.unlock(lock);
    }
  }

  /**
   * Returns once no other thread reads from a file that is about to be closed, and none will.
   * @returns false if one still did after a second
   */
  quiesce(descriptor: number): boolean {
    const words = this.#words;
    const deadline = performance.now() + QUIESCE_MS;
    let isQuiet = true;
    for (let slot = 0; slot < this.slots; slot++) {
      const at = this.#word(slot);
      const state = at + SlotWord.state;
      if (words[at + SlotWord.descriptor] !== descriptor) continue;
      Atomics.compareExchange(words, state, QUEUED, FREE);
      for (let now; (now = Atomics.load(words, state)) === FILLING || now === STALE;) {
        if (words[at + SlotWord.owner] === this.#memory.owner) break;
        const left = deadline - performance.now();
        if (left <= 0) {
          isQuiet = false;
          break;
        }
        Atomics.wait(words, state, now, left);
      }
    }
    return isQuiet;
  }

  /** Gives up what a thread that has ended was doing. */
  releaseOwner(owner: number): void {
    const words = this.#words;
    for (let set = 0; set < this.#layout.sets; set++) {
      Atomics.compareExchange(words, this.#layout.lockWord + set, owner, 0);
    }
    for (let slot = 0; slot < this.slots; slot++) {
      const at = this.#word(slot);
      const state = at + SlotWord.state;
      // The file that it was to be read from is closed.
      if (words[at + SlotWord.poster] === owner) {
        Atomics.compareExchange(words, state, QUEUED, FREE);
      }
      if (words[at + SlotWord.owner] !== owner) continue;
      Atomics.compareExchange(words, state, FILLING, FREE);
      Atomics.compareExchange(words, state, STALE, FREE);
      Atomics.notify(words, state);
    }
  }

  /** Slots that hold a cluster, or wait for one. */
  get occupied(): number {
    let count = 0;
    for (let slot = 0; slot < this.slots; slot++) {
      if (Atomics.load(this.#words, this.#word(slot) + SlotWord.state) !== FREE) count++;
    }
    return count;
  }

  #word(slot: number): number {
    return this.#layout.slotWord + slot * SLOT_WORDS;
  }

  #setOf(image: number, hostOffset: number): number {
    const high = Math.floor(hostOffset / TWO_32);
    let hash = Math.imul((hostOffset | 0) ^ Math.imul(high, 0x85ebca6b) ^ image, 0x9e3779b1);
    hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
    return ((hash ^ (hash >>> 13)) >>> 0) % this.#layout.sets;
  }

  #find(set: number, { image, hostOffset }: Omit<ClusterKey, 'length'>, length: number): number {
    const words = this.#words;
    const { ways } = this.#layout;
    const low = hostOffset | 0;
    const high = Math.floor(hostOffset / TWO_32);
    const first = set * ways;
    for (let slot = first; slot < first + ways; slot++) {
      const at = this.#word(slot);
      if (words[at + SlotWord.offsetLow] !== low) continue;
      if (words[at + SlotWord.offsetHigh] !== high || words[at + SlotWord.image] !== image)
        continue;
      if (length !== ANY_LENGTH && words[at + SlotWord.length] !== length) continue;
      const state = Atomics.load(words, at + SlotWord.state);
      if (state !== FREE && state !== STALE) return slot;
    }
    return NO_SLOT;
  }

  /** What there is to do with a slot that was found. */
  #enter(slot: number): Found {
    const words = this.#words;
    const at = this.#word(slot);
    const before = Atomics.compareExchange(words, at + SlotWord.state, QUEUED, FILLING);
    if (before === FILLED) return CLUSTER;
    if (before !== QUEUED) return BUSY;
    words[at + SlotWord.owner] = this.#memory.owner;
    // Nobody did it in advance.
    words[at + SlotWord.use] = NEW | ASKED_FOR;
    return ROOM;
  }

  /** A slot of a set that holds nothing any more; the lock is held. */
  #makeRoom(set: number, isNeeded: boolean): number {
    const words = this.#words;
    const { ways } = this.#layout;
    const first = set * ways;
    for (let slot = first; slot < first + ways; slot++) {
      const at = this.#word(slot);
      if (Atomics.load(words, at + SlotWord.pins) !== 0) continue;
      if (Atomics.load(words, at + SlotWord.state) === FREE) return slot;
    }
    for (let round = 0; round <= GO_FIRST; round++) {
      let hasFilled = false;
      for (let slot = first; slot < first + ways; slot++) {
        const at = this.#word(slot);
        if (Atomics.load(words, at + SlotWord.pins) !== 0) continue;
        if (Atomics.load(words, at + SlotWord.state) !== FILLED) continue;
        hasFilled = true;
        if ((words[at + SlotWord.use]! & AGE_MASK) < GO_FIRST) continue;
        this.#evict(at);
        return slot;
      }
      if (!hasFilled) break;
      for (let slot = first; slot < first + ways; slot++) {
        const use = this.#word(slot) + SlotWord.use;
        if ((words[use]! & AGE_MASK) < GO_FIRST) words[use]!++;
      }
    }
    // What is to be decompressed in advance gives way to what is needed now.
    for (let slot = first; isNeeded && slot < first + ways; slot++) {
      const state = this.#word(slot) + SlotWord.state;
      if (Atomics.load(words, this.#word(slot) + SlotWord.pins) !== 0) continue;
      if (Atomics.compareExchange(words, state, QUEUED, FREE) === QUEUED) return slot;
    }
    return NO_SLOT;
  }

  #evict(at: number): void {
    const words = this.#words;
    if ((words[at + SlotWord.use]! & READ_AHEAD) !== 0) {
      this.#counters.add(Counter.wastedBytes, this.clusterSize);
      const stream = words[at + SlotWord.stream]!;
      if (stream > 0) this.#feedback.wasted(stream - 1);
    }
    Atomics.store(words, at + SlotWord.state, FREE);
  }

  #assign(slot: number, { image, hostOffset, length }: ClusterKey, use: number): void {
    const words = this.#words;
    const at = this.#word(slot);
    words[at + SlotWord.image] = image;
    words[at + SlotWord.offsetHigh] = Math.floor(hostOffset / TWO_32);
    words[at + SlotWord.offsetLow] = hostOffset | 0;
    words[at + SlotWord.length] = length;
    words[at + SlotWord.use] = use;
    words[at + SlotWord.next] = 0;
    words[at + SlotWord.owner] = 0;
    words[at + SlotWord.stream] = 0;
    words[at + SlotWord.descriptor] = -1;
  }

  /** Drops what a slot holds, or what it is being filled with. */
  #drop(state: number): void {
    const words = this.#words;
    for (;;) {
      const before = Atomics.load(words, state);
      if (before === FREE || before === STALE) return;
      const after = before === FILLING ? STALE : FREE;
      if (Atomics.compareExchange(words, state, before, after) === before) return;
    }
  }
}
