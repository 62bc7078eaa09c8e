/**
 * Guest writes.
 *
 * What has a host cluster of its own is overwritten there. Everything else is written to new
 * clusters, as many in one piece as can be: the data goes to the file first, with what the guest
 * had around it (copy on write), and then the L2 entries are changed in memory, for the commit.
 * With extended L2 entries only the subclusters that are touched are filled.
 */

import { Qcow2Error } from '../errors.ts';
import { EntryFlag, entryOffset, READS_ZERO } from '../format/qcow2/l2-entry.ts';
import { CopyOnWrite } from './copy-on-write.ts';
import { setEntry } from './l2-editor.ts';
import type { WriteContext } from './write-context.ts';

/** Bits of a subcluster bitmap with all set. */
export const ALL_SUBCLUSTERS = 0xffff_ffff;
const SUBCLUSTERS = 32;
/** Stands for "a new cluster has to be allocated". */
const NEW = -1;
/** Stands for "it is written where it is", which ends a run of clusters that are not. */
const IN_PLACE = -2;

/** Where guest bytes are in the tables. */
interface Position {
  /** Guest offset of the first byte. */
  guest: number;
  /** The same, within its cluster. */
  inCluster: number;
  l1Index: number;
  l2Index: number;
}

/** What has to be done to a cluster so that part of it can be written. */
interface ClusterPlan {
  /** Host offset of the cluster, or NEW, or IN_PLACE. */
  host: number;
  /** First byte of the cluster that has to be written; may be before those of the guest. */
  start: number;
  /** End of the bytes that have to be written. */
  end: number;
  /** Subclusters that read as zeroes afterwards. */
  readsZero: number;
  /** Subclusters that are allocated afterwards. */
  isAllocated: number;
}

/** Writes to the active disk of an image. */
export class DiskWriter {
  readonly #context: WriteContext;
  readonly #clusterSize: number;
  readonly #subclusterSize: number;
  readonly #isExtended: boolean;
  readonly #isExternal: boolean;
  readonly #copyOnWrite: CopyOnWrite;
  /** Where the run of {@link #inPlaceLength} is. */
  #inPlaceHost = 0;

  constructor(context: WriteContext) {
    const { header } = context;
    this.#context = context;
    this.#clusterSize = header.clusterSize;
    this.#subclusterSize = header.clusterSize / SUBCLUSTERS;
    this.#isExtended = header.hasExtendedL2;
    this.#isExternal = header.hasExternalDataFile;
    this.#copyOnWrite = new CopyOnWrite(context.reader, context.dataFile);
  }

  /**
   * Stores all of `source` at a guest offset that the L1 table reaches.
   * @throws {Qcow2Error} `HOST`, `TOO_LARGE`, `CORRUPT` or `TRUNCATED`; what was written before the
   * failure stays written
   */
  write(source: Uint8Array, offset: number): void {
    const { length } = source;
    for (let done = 0; done < length;) {
      const position = this.#locate(offset + done);
      done += this.#writeSome(done === 0 ? source : source.subarray(done), position);
      // Of a huge write, the changed tables are not all kept in memory.
      if (this.#context.committer.isDue) this.#context.committer.flush();
    }
  }

  #locate(guest: number): Position {
    const { l2Entries } = this.#context.header;
    const cluster = Math.floor(guest / this.#clusterSize);
    const l1Index = Math.floor(cluster / l2Entries);
    const inCluster = guest - cluster * this.#clusterSize;
    return { guest, inCluster, l1Index, l2Index: cluster - l1Index * l2Entries };
  }

  /** Writes the start of `source`, as much as can be written in one way; returns how much. */
  #writeSome(source: Uint8Array, position: Position): number {
    const { editor, dataFile, metadata, committer } = this.#context;
    const { offset: table, isCopied } = editor.locate(position.l1Index);
    if (table !== 0 && isCopied) {
      const length = this.#inPlaceLength(table, position, source.length);
      if (length > 0) {
        const part = length === source.length ? source : source.subarray(0, length);
        if (!this.#isExternal) metadata.checkClear(this.#inPlaceHost, length, 'guest data');
        dataFile.write(part, this.#inPlaceHost);
        committer.noteOverwrite();
        return length;
      }
    }
    return this.#writeElsewhere(source, position);
  }

  // ---- Overwriting --------------------------------------------------------------------------

  /** Bytes from a position on that have host clusters of their own in one piece; 0 if none. */
  #inPlaceLength(table: number, { l2Index, inCluster }: Position, wanted: number): number {
    const { words, firstIndex } = this.#context.editor.read(table, l2Index);
    const { sliceEntries } = this.#context.editor;
    const first = l2Index - firstIndex;
    const host = this.#ownCluster(words, first);
    if (host < 0) return 0;
    this.#inPlaceHost = host + inCluster;
    const needed = inCluster + wanted;
    let end = this.#allocatedEnd(words, first, inCluster);
    for (
      let index = first + 1, at = this.#clusterSize;
      end === at && at < needed && index < sliceEntries;
      index++, at += this.#clusterSize
    ) {
      if (this.#ownCluster(words, index) !== host + at) break;
      end = at + this.#allocatedEnd(words, index, 0);
    }
    return Math.max(0, Math.min(end, needed) - inCluster);
  }

  /** Host offset of the cluster that only this entry points at and that holds data; or NEW. */
  #ownCluster(words: Uint32Array, index: number): number {
    const at = this.#isExtended ? 4 * index : 2 * index;
    const high = words[at]!;
    const low = words[at + 1]!;
    if ((high & EntryFlag.COPIED) === 0 || (high & EntryFlag.COMPRESSED) !== 0) return NEW;
    if (!this.#isExtended && (low & READS_ZERO) !== 0) return NEW;
    const offset = entryOffset(high, low);
    if (offset === 0 && !this.#isExternal) return NEW;
    this.#checkAligned(offset);
    return offset;
  }

  /** End, within its cluster, of the allocated subclusters from `inCluster` on. */
  #allocatedEnd(words: Uint32Array, index: number, inCluster: number): number {
    if (!this.#isExtended) return this.#clusterSize;
    const isAllocated = words[4 * index + 3]!;
    if (isAllocated === ALL_SUBCLUSTERS) return this.#clusterSize;
    let subcluster = Math.floor(inCluster / this.#subclusterSize);
    while (subcluster < SUBCLUSTERS && (isAllocated & (1 << subcluster)) !== 0) subcluster++;
    return subcluster * this.#subclusterSize;
  }

  #checkAligned(offset: number): void {
    if (offset % this.#clusterSize === 0 && offset <= Number.MAX_SAFE_INTEGER) return;
    throw new Qcow2Error('CORRUPT', `its cluster's offset ${offset} is not aligned`, {
      structure: 'L2 entry',
      hint: 'repair the image with: qcow2 check -r all',
    });
  }

  // ---- New clusters -------------------------------------------------------------------------

  /** Writes to clusters that have to be allocated, or whose entries have to change. */
  #writeElsewhere(source: Uint8Array, position: Position): number {
    const { editor, allocator, dataFile } = this.#context;
    const { guest, inCluster, l1Index, l2Index } = position;
    const clusterSize = this.#clusterSize;
    const table = editor.writableTable(l1Index);
    const plans = this.#plan(table, position, source.length);
    // The table was shared, though what it points at is not.
    if (plans.length === 0) return this.#writeSome(source, position);
    const isNew = plans[0]!.host === NEW;
    const run = isNew
      ? allocator.allocateRun(plans.length)
      : { offset: plans[0]!.host, count: plans.length };
    const { offset: host, count } = run;
    const length = Math.min(source.length, count * clusterSize - inCluster);
    try {
      const lastPlan = plans[count - 1]!;
      const isFresh = host >= dataFile.size;
      if (this.#isExternal) allocator.keepData(host, count * clusterSize);
      else this.#context.metadata.checkClear(host, count * clusterSize, 'guest data');
      this.#copyOnWrite.write(source.subarray(0, length), {
        guest,
        host: host + inCluster,
        head: inCluster - plans[0]!.start,
        tail: (count - 1) * clusterSize + lastPlan.end - inCluster - length,
        isFresh,
      });
      this.#context.committer.noteNewData();
      this.#setEntries(table, l2Index, host, plans.slice(0, count));
    } catch (error) {
      if (isNew) allocator.release(run);
      throw error;
    }
    return length;
  }

  /** What has to be done to the clusters from a position on that can be written in one piece. */
  #plan(table: number, { guest, inCluster, l2Index }: Position, wanted: number): ClusterPlan[] {
    const { editor } = this.#context;
    const { words, firstIndex } = editor.read(table, l2Index);
    const clusterSize = this.#clusterSize;
    const needed = inCluster + wanted;
    const plans: ClusterPlan[] = [];
    for (
      let index = l2Index - firstIndex, at = 0;
      at < needed && index < editor.sliceEntries;
      index++, at += clusterSize
    ) {
      const start = at === 0 ? inCluster : 0;
      const end = Math.min(needed - at, clusterSize);
      const clusterGuest = guest - inCluster + at;
      const plan = this.#isExtended
        ? this.#planExtended(words, index, { start, end, clusterGuest })
        : this.#planStandard(words, index, clusterGuest);
      if (plan.host === IN_PLACE) break;
      const [first] = plans;
      if (first !== undefined) {
        if (first.host === NEW ? plan.host !== NEW : plan.host !== first.host + at) break;
      }
      plans.push(plan);
    }
    return plans;
  }

  #planStandard(words: Uint32Array, index: number, clusterGuest: number): ClusterPlan {
    const high = words[2 * index]!;
    const low = words[2 * index + 1]!;
    const isInPlace = this.#ownCluster(words, index) >= 0;
    const host = isInPlace ? IN_PLACE : this.#reusableCluster(high, low, clusterGuest);
    return { host, start: 0, end: this.#clusterSize, readsZero: 0, isAllocated: 0 };
  }

  /** Host offset of the space that an entry without data has all the same; or NEW. */
  #reusableCluster(high: number, low: number, clusterGuest: number): number {
    const isCompressed = (high & EntryFlag.COMPRESSED) !== 0;
    const offset = isCompressed ? 0 : entryOffset(high, low);
    if (offset !== 0 && (high & EntryFlag.COPIED) !== 0) {
      this.#checkAligned(offset);
      return offset;
    }
    // In an external data file every guest cluster has its place.
    return this.#isExternal ? clusterGuest : NEW;
  }

  #planExtended(
    words: Uint32Array,
    index: number,
    { start, end, clusterGuest }: { start: number; end: number; clusterGuest: number },
  ): ClusterPlan {
    const high = words[4 * index]!;
    const low = words[4 * index + 1]!;
    const readsZero = words[4 * index + 2]!;
    const isAllocated = words[4 * index + 3]!;
    const size = this.#subclusterSize;
    const firstSubcluster = Math.floor(start / size);
    const lastSubcluster = Math.ceil(end / size) - 1;
    const written = subclusterMask(firstSubcluster, lastSubcluster);
    const after = {
      readsZero: (readsZero & ~written) >>> 0,
      isAllocated: (isAllocated | written) >>> 0,
    };
    if ((high & EntryFlag.COMPRESSED) !== 0) {
      const all = { readsZero: 0, isAllocated: ALL_SUBCLUSTERS };
      return { ...all, host: NEW, start: 0, end: this.#clusterSize };
    }
    const isSpaceless = entryOffset(high, low) === 0 && !this.#isExternal;
    if ((readsZero & isAllocated) !== 0 || (isSpaceless && isAllocated !== 0)) {
      throw new Qcow2Error('CORRUPT', 'its subcluster bitmap contradicts itself', {
        structure: `L2 entry of guest offset ${clusterGuest}`,
        hint: 'repair the image with: qcow2 check -r all',
      });
    }
    const host = this.#reusableCluster(high, low, clusterGuest);
    if (host !== NEW) {
      if ((isAllocated & written) >>> 0 === written)
        return { ...after, host: IN_PLACE, start, end };
      const hasFirst = (isAllocated & (1 << firstSubcluster)) !== 0;
      const hasLast = (isAllocated & (1 << lastSubcluster)) !== 0;
      return {
        ...after,
        host,
        start: hasFirst ? start : firstSubcluster * size,
        end: hasLast ? end : (lastSubcluster + 1) * size,
      };
    }
    // What a snapshot shares is copied as far as there is something; bits say what there is.
    const lowest = Math.min(
      firstSubcluster,
      31 - Math.clz32(after.isAllocated & -after.isAllocated),
    );
    const highest = Math.max(lastSubcluster, 31 - Math.clz32(after.isAllocated));
    return { ...after, host: NEW, start: lowest * size, end: (highest + 1) * size };
  }

  #setEntries(table: number, l2Index: number, host: number, plans: readonly ClusterPlan[]): void {
    const { editor } = this.#context;
    const { words, firstIndex } = editor.modify(table, l2Index);
    const entryWords = this.#isExtended ? 4 : 2;
    plans.forEach((plan, index) => {
      const at = (l2Index - firstIndex + index) * entryWords;
      const oldHigh = words[at]!;
      const oldLow = words[at + 1]!;
      const offset = host + index * this.#clusterSize;
      setEntry(words, at, { offset, high: EntryFlag.COPIED, low: 0 });
      if (this.#isExtended) {
        words[at + 2] = plan.readsZero;
        words[at + 3] = plan.isAllocated;
      }
      if (plan.host === NEW) editor.freeEntry(oldHigh, oldLow);
    });
  }
}

/** The bits of subclusters `first` to `last`. */
export function subclusterMask(first: number, last: number): number {
  return ((ALL_SUBCLUSTERS << first) & (ALL_SUBCLUSTERS >>> (31 - last))) >>> 0;
}
