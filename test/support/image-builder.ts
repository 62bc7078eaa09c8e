/**
 * Builds qcow2 images in memory, byte by byte from the specification and without the code under
 * test, and tells where each field of each structure is, so that tests can patch them.
 */

import { contentOf, storedCluster } from './image-builder-content.ts';
import { StructureWriter } from './image-builder-structures.ts';
import type { Structure } from './image-builder-structures.ts';

export type { Field, Structure } from './image-builder-structures.ts';

/** What to build. */
export interface BuildOptions {
  version?: 2 | 3;
  /** Default 9: the smallest clusters make the smallest images. */
  clusterBits?: number;
  /** Default 4. */
  refcountOrder?: number;
  extendedL2?: boolean;
  compression?: 'zlib' | 'zstd';
  backing?: { name: string; format: string };
  dataFile?: { name: string; raw: boolean };
  /** Default true: a snapshot of an earlier state, with VM state. */
  withSnapshot?: boolean;
  /** Default true for version 3: two bitmaps. */
  withBitmaps?: boolean;
  /** Guest clusters; default 96. */
  guestClusters?: number;
}

/** An image and what is known of it. */
export interface BuiltImage {
  bytes: Buffer;
  /** All structures in the order of their offsets. */
  structures: Structure[];
  clusterSize: number;
  /** What the disk reads as; where the backing file shows, as zeroes. */
  content: Buffer;
  /** Which guest clusters are not allocated. */
  unallocated: Set<number>;
  /** The snapshot, and what its disk reads as. */
  snapshot: { id: string; content: Buffer } | undefined;
  /** What the external data file has to hold. */
  dataFile: Buffer;
}

/** How a guest cluster is stored, by its number. */
export const CLUSTER_KINDS = [
  'data',
  'compressed',
  'zero',
  'unallocated',
  'zero-allocated',
  'compressed',
  'data',
  'data',
] as const;
export type ClusterKind = (typeof CLUSTER_KINDS)[number];

const SNAPSHOT_ID = '1';
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const OFFSET_LIMIT = 1n << 56n;
const L1_LIMIT = 32n * 1024n * 1024n;

const ExtensionType = {
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  EXTERNAL_DATA_FILE: 0x44415441,
  UNKNOWN: 0x51c0ffee,
} as const;

/** Builds an image. */
export function buildImage(options: BuildOptions = {}): BuiltImage {
  return new Builder(options).build();
}

class Builder {
  readonly #options: Required<Omit<BuildOptions, 'backing' | 'dataFile'>> & BuildOptions;
  readonly #clusterSize: number;
  readonly #entrySize: number;
  readonly #perL2: number;
  readonly #l1Size: number;
  readonly #writer: StructureWriter;
  readonly #refcounts: number[] = [];
  readonly #content: Buffer;
  readonly #snapshotContent: Buffer;
  readonly #dataFile: Buffer;
  readonly #unallocated = new Set<number>();

  constructor(options: BuildOptions) {
    const version = options.version ?? 3;
    this.#options = {
      version,
      clusterBits: options.extendedL2 === true ? 14 : 9,
      refcountOrder: 4,
      extendedL2: false,
      compression: 'zlib',
      withSnapshot: true,
      withBitmaps: version === 3,
      guestClusters: 96,
      ...options,
    };
    this.#clusterSize = 2 ** this.#options.clusterBits;
    this.#entrySize = this.#options.extendedL2 ? 16 : 8;
    this.#perL2 = this.#clusterSize / this.#entrySize;
    // One entry more than the disk needs: VM state would live there.
    this.#l1Size = Math.ceil(this.#options.guestClusters / this.#perL2) + 1;
    this.#writer = new StructureWriter(this.#clusterSize);
    this.#content = Buffer.alloc(this.#options.guestClusters * this.#clusterSize);
    this.#snapshotContent = Buffer.alloc(this.#content.length);
    this.#dataFile = Buffer.alloc(this.#content.length);
  }

  build(): BuiltImage {
    const header = this.#allocate();
    const refcountTable = this.#allocate();
    const refcountBlock = this.#allocate();
    const shared = this.#writeData();
    const active = this.#writeMapping('', shared, { isActive: true });
    const snapshots = this.#options.withSnapshot ? this.#writeSnapshots(shared) : 0;
    const bitmaps = this.#options.withBitmaps ? this.#writeBitmaps() : undefined;
    this.#writeHeader(header, { refcountTable, active, snapshots, bitmaps });
    this.#writeRefcounts(refcountTable, refcountBlock);
    return {
      bytes: this.#writer.bytes,
      structures: this.#writer.structures.toSorted((a, b) => a.offset - b.offset),
      clusterSize: this.#clusterSize,
      content: this.#content,
      unallocated: this.#unallocated,
      snapshot: this.#options.withSnapshot
        ? { id: SNAPSHOT_ID, content: this.#snapshotContent }
        : undefined,
      dataFile: this.#dataFile,
    };
  }

  #allocate(clusters = 1): number {
    const offset = this.#writer.allocate(clusters * this.#clusterSize);
    for (let index = 0; index < clusters; index++) this.#count(offset + index * this.#clusterSize);
    return offset;
  }

  #count(hostOffset: number, references = 1): void {
    const cluster = Math.floor(hostOffset / this.#clusterSize);
    this.#refcounts[cluster] = (this.#refcounts[cluster] ?? 0) + references;
  }

  #kindOf(cluster: number): ClusterKind {
    const { version, dataFile, guestClusters } = this.#options;
    // The last L2 table stays empty but for its last cluster, so that it has a run of holes.
    if (cluster > guestClusters - 16 && cluster < guestClusters - 1) return 'unallocated';
    const kind = CLUSTER_KINDS[cluster % CLUSTER_KINDS.length]!;
    if (dataFile !== undefined && kind === 'compressed') return 'data';
    return version === 2 && kind.startsWith('zero') ? 'unallocated' : kind;
  }

  /** Stores all clusters and returns their L2 entries, without COPIED. */
  #writeData(): bigint[] {
    const entries: bigint[] = [];
    const references = this.#options.withSnapshot ? 2 : 1;
    const stream = { offset: 0, end: 0 };
    for (let cluster = 0; cluster < this.#options.guestClusters; cluster++) {
      const kind = this.#kindOf(cluster);
      const content = contentOf(cluster, this.#clusterSize);
      const target = cluster * this.#clusterSize;
      if (kind === 'data' || kind === 'compressed') this.#content.set(content, target);
      entries.push(this.#storeCluster(kind, cluster, content, stream, references));
      if (kind === 'unallocated') this.#unallocated.add(cluster);
    }
    this.#snapshotContent.set(this.#content);
    return entries;
  }

  #storeCluster(
    kind: ClusterKind,
    cluster: number,
    content: Buffer,
    stream: { offset: number; end: number },
    references: number,
  ): bigint {
    if (kind === 'unallocated') return 0n;
    if (kind === 'zero') return this.#options.extendedL2 ? 0n : 1n;
    if (kind === 'compressed') return this.#storeCompressed(cluster, content, stream, references);
    if (this.#options.dataFile !== undefined) {
      this.#dataFile.set(content, cluster * this.#clusterSize);
      const zero = kind === 'zero-allocated' ? 1n : 0n;
      return BigInt(cluster * this.#clusterSize) | zero;
    }
    const offset = this.#writer.place(`data of guest cluster ${cluster}`, content);
    this.#count(offset, references);
    return BigInt(offset) | (kind === 'zero-allocated' && !this.#options.extendedL2 ? 1n : 0n);
  }

  /** Puts compressed bytes right behind the last ones, across host clusters where it happens. */
  #storeCompressed(
    cluster: number,
    content: Buffer,
    stream: { offset: number; end: number },
    references: number,
  ): bigint {
    const { compression, clusterBits } = this.#options;
    const stored = storedCluster(content, compression);
    if (stream.offset + stored.length > stream.end) {
      const needed = Math.ceil((stream.offset % this.#clusterSize || 1) + stored.length);
      const clusters = Math.max(4, Math.ceil(needed / this.#clusterSize));
      stream.offset = this.#writer.allocate(clusters * this.#clusterSize);
      stream.end = stream.offset + clusters * this.#clusterSize;
    }
    const offset = stream.offset;
    stream.offset += stored.length;
    this.#writer.put(offset, stored);
    this.#writer.record(`compressed data of guest cluster ${cluster}`, offset, stored.length);
    const sectors = Math.floor((offset + stored.length - 1) / 512) - Math.floor(offset / 512);
    const first = Math.floor(offset / this.#clusterSize);
    const last = Math.floor((offset + stored.length - 1) / this.#clusterSize);
    for (let host = first; host <= last; host++) this.#count(host * this.#clusterSize, references);
    return COMPRESSED | (BigInt(sectors) << BigInt(62 - (clusterBits - 8))) | BigInt(offset);
  }

  /** Writes L2 tables and an L1 table and returns its offset. */
  #writeMapping(of: string, entries: bigint[], { isActive }: { isActive: boolean }): number {
    const l2Offsets: number[] = [];
    const copied = isActive && !this.#options.withSnapshot ? COPIED : 0n;
    for (let table = 0; table < this.#l1Size - 1; table++) {
      const offset = this.#allocate();
      l2Offsets.push(offset);
      const structure = this.#writer.structure(`${of}L2 table ${table}`, offset, this.#clusterSize);
      const inTable = entries.slice(table * this.#perL2, (table + 1) * this.#perL2);
      for (const [index, entry] of inTable.entries()) {
        const cluster = table * this.#perL2 + index;
        const isCompressed = (entry & COMPRESSED) !== 0n;
        const isPlain = entry > 1n || this.#options.dataFile !== undefined;
        const flags = isPlain && !isCompressed && this.#isStored(cluster) ? copied : 0n;
        // Mutating every entry of a kind shows nothing that one or two of them do not.
        const isListed = index < 8 || index === inTable.length - 1;
        const name = isListed ? `${of}L2 entry ${cluster}` : undefined;
        structure.u64(name, index * this.#entrySize, entry | flags, OFFSET_LIMIT);
        if (this.#options.extendedL2) {
          const bitmapName = isListed ? `${of}L2 subcluster bitmap ${cluster}` : undefined;
          structure.u64(bitmapName, index * 16 + 8, this.#subclusters(cluster), 1n << 32n);
        }
      }
    }
    const l1 = this.#allocate(Math.ceil((this.#l1Size * 8) / this.#clusterSize));
    const structure = this.#writer.structure(`${of}L1 table`, l1, this.#l1Size * 8);
    for (let index = 0; index < this.#l1Size; index++) {
      const offset = l2Offsets[index];
      const entry = offset === undefined ? 0n : BigInt(offset) | COPIED;
      structure.u64(`${of}L1 entry ${index}`, index * 8, entry, OFFSET_LIMIT);
    }
    return l1;
  }

  #isStored(cluster: number): boolean {
    const kind = this.#kindOf(cluster);
    return kind === 'data' || kind === 'zero-allocated';
  }

  #subclusters(cluster: number): bigint {
    const kind = this.#kindOf(cluster);
    if (kind === 'zero' || kind === 'zero-allocated') return 0xffff_ffffn << 32n;
    return kind === 'data' ? 0xffff_ffffn : 0n;
  }

  #writeSnapshots(entries: bigint[]): number {
    const l1 = this.#writeMapping('snapshot ', entries, { isActive: false });
    const offset = this.#allocate();
    const id = Buffer.from(SNAPSHOT_ID);
    const name = Buffer.from('earlier');
    const length = 40 + 24 + id.length + name.length;
    const row = this.#writer.structure('snapshot table', offset, Math.ceil(length / 8) * 8);
    row.u64('snapshot l1_table_offset', 0, BigInt(l1), OFFSET_LIMIT);
    row.u32('snapshot l1_size', 8, this.#l1Size, L1_LIMIT / 8n);
    row.u16('snapshot id_size', 12, id.length, 1024n);
    row.u16('snapshot name_size', 14, name.length, 1024n);
    row.u32('snapshot date_seconds', 16, 1_704_067_200, 0x7fff_ffffn);
    row.u32('snapshot date_nanoseconds', 20, 0, 999_999_999n);
    row.u64('snapshot vm_clock', 24, 5_000_000_000n, 1n << 62n);
    row.u32('snapshot vm_state_size', 32, 0, 0x7fff_ffffn);
    row.u32('snapshot extra_size', 36, 24, 1024n);
    row.u64('snapshot extra vm_state_size', 40, 0n, 1n << 53n);
    row.u64('snapshot extra disk_size', 48, BigInt(this.#content.length), 1n << 53n);
    row.u64('snapshot extra icount', 56, 0n, 1n << 53n);
    this.#writer.put(offset + 64, Buffer.concat([id, name]));
    return offset;
  }

  #writeBitmaps(): { offset: number; size: number } {
    const tables = ['bits', 'ones'].map((name) => {
      const table = this.#allocate();
      const data = name === 'bits' ? this.#allocate() : undefined;
      if (data !== undefined) {
        this.#writer.put(data, Buffer.alloc(this.#clusterSize, 0));
        this.#writer.put(data, Buffer.from([0b0000_0101]));
        this.#writer.record(`data of bitmap ${name}`, data, this.#clusterSize);
      }
      const structure = this.#writer.structure(`table of bitmap ${name}`, table, 8);
      structure.u64(`bitmap table entry of ${name}`, 0, BigInt(data ?? 1), OFFSET_LIMIT);
      return table;
    });
    const offset = this.#allocate();
    let at = offset;
    for (const [index, name] of ['bits', 'ones'].entries()) {
      const entry = this.#writer.structure(`bitmap directory entry ${index}`, at, 32);
      entry.u64(`bitmap ${name} table_offset`, 0, BigInt(tables[index]!), OFFSET_LIMIT);
      entry.u32(`bitmap ${name} table_size`, 8, 1, 0x40_0000n);
      entry.u32(`bitmap ${name} flags`, 12, index === 0 ? 2 : 0, 4n);
      entry.u8(`bitmap ${name} type`, 16, 1, 1n);
      entry.u8(`bitmap ${name} granularity_bits`, 17, 16, 31n);
      entry.u16(`bitmap ${name} name_size`, 18, name.length, 1023n);
      entry.u32(`bitmap ${name} extra_size`, 20, 0, 1024n);
      this.#writer.put(at + 24, Buffer.from(name));
      at += 32;
    }
    return { offset, size: at - offset };
  }

  #writeHeader(
    offset: number,
    at: {
      refcountTable: number;
      active: number;
      snapshots: number;
      bitmaps: { offset: number; size: number } | undefined;
    },
  ): void {
    const { version, clusterBits, refcountOrder, extendedL2, compression, dataFile } =
      this.#options;
    const headerLength = version === 2 ? 72 : 112;
    const header = this.#writer.structure('header', offset, headerLength);
    const name = this.#writeExtensions(headerLength, at.bitmaps);
    const anyOffset = 1n << 53n;
    header.u32('magic', 0, 0x5146_49fb, 0x5146_49fbn);
    header.u32('version', 4, version, 3n);
    header.u64('backing_file_offset', 8, BigInt(name.offset), BigInt(this.#clusterSize));
    header.u32('backing_file_size', 16, name.length, 1023n);
    header.u32('cluster_bits', 20, clusterBits, 21n);
    header.u64('size', 24, BigInt(this.#content.length), 1n << 53n);
    header.u32('crypt_method', 32, 0, 2n);
    header.u32('l1_size', 36, this.#l1Size, L1_LIMIT / 8n);
    header.u64('l1_table_offset', 40, BigInt(at.active), anyOffset);
    header.u64('refcount_table_offset', 48, BigInt(at.refcountTable), anyOffset);
    const tableLimit = (8n * 1024n * 1024n) / BigInt(this.#clusterSize);
    header.u32('refcount_table_clusters', 56, 1, tableLimit);
    header.u32('nb_snapshots', 60, at.snapshots === 0 ? 0 : 1, 65_536n);
    header.u64('snapshots_offset', 64, BigInt(at.snapshots), anyOffset);
    if (version === 2) return;
    const incompatible =
      (dataFile === undefined ? 0n : 4n) |
      (compression === 'zstd' ? 8n : 0n) |
      (extendedL2 ? 16n : 0n);
    const autoclear = (at.bitmaps === undefined ? 0n : 1n) | (dataFile?.raw === true ? 2n : 0n);
    header.u64('incompatible_features', 72, incompatible, 0x1fn);
    header.u64('compatible_features', 80, 0n, 1n);
    header.u64('autoclear_features', 88, autoclear, 3n);
    header.u32('refcount_order', 96, refcountOrder, 6n);
    header.u32('header_length', 100, headerLength, BigInt(this.#clusterSize));
    header.u8('compression_type', 104, compression === 'zstd' ? 1 : 0, 1n);
  }

  /** Writes the extensions and the backing file's name; returns where the name is. */
  #writeExtensions(
    start: number,
    bitmaps: { offset: number; size: number } | undefined,
  ): { offset: number; length: number } {
    const { backing, dataFile, version } = this.#options;
    let at = start;
    const add = (name: string, type: number, data: Buffer, limit: bigint): number => {
      const length = 8 + Math.ceil(data.length / 8) * 8;
      const extension = this.#writer.structure(`${name} extension`, at, length);
      extension.u32(`${name} extension type`, 0, type, 0xffff_fffen);
      extension.u32(`${name} extension length`, 4, data.length, limit);
      this.#writer.put(at + 8, data);
      at += length;
      return at - length + 8;
    };
    if (backing !== undefined) {
      add('backing format', ExtensionType.BACKING_FORMAT, Buffer.from(backing.format), 15n);
    }
    if (dataFile !== undefined) {
      add('data file', ExtensionType.EXTERNAL_DATA_FILE, Buffer.from(dataFile.name), 255n);
    }
    if (version === 3) {
      const row = Buffer.alloc(48);
      row.write('dirty bit', 2);
      add('feature names', ExtensionType.FEATURE_NAMES, row, 48n);
    }
    if (bitmaps !== undefined) {
      const data = add('bitmaps', ExtensionType.BITMAPS, Buffer.alloc(24), 24n);
      const fields = this.#writer.structure('bitmaps extension data', data, 24);
      fields.u32('nb_bitmaps', 0, 2, 65_535n);
      fields.u32('bitmaps reserved', 4, 0, 0n);
      fields.u64('bitmap_directory_size', 8, BigInt(bitmaps.size), 64n * 1024n * 1024n);
      fields.u64('bitmap_directory_offset', 16, BigInt(bitmaps.offset), 1n << 53n);
    }
    add('unknown', ExtensionType.UNKNOWN, Buffer.from('thirteen byte'), 300n);
    at += 8;
    if (backing === undefined) return { offset: 0, length: 0 };
    const name = Buffer.from(backing.name);
    this.#writer.put(at, name);
    this.#writer.record('backing file name', at, name.length);
    return { offset: at, length: name.length };
  }

  #writeRefcounts(tableOffset: number, blockOffset: number): void {
    const table = this.#writer.structure('refcount table', tableOffset, this.#clusterSize);
    table.u64('refcount table entry 0', 0, BigInt(blockOffset), 1n << 56n);
    table.u64('refcount table entry 1', 8, 0n, 1n << 56n);
    const bits = 2 ** this.#options.refcountOrder;
    const block = this.#writer.structure('refcount block 0', blockOffset, this.#clusterSize);
    if (bits !== 16) {
      throw new Error('the builder writes refcounts of 16 bits');
    }
    if (this.#refcounts.length > this.#clusterSize / 2) throw new Error('the image is too large');
    for (const [cluster, count] of this.#refcounts.entries()) {
      const isListed = cluster < 4 || cluster === this.#refcounts.length - 1;
      block.u16(isListed ? `refcount ${cluster}` : undefined, cluster * 2, count ?? 0, 0x7fffn);
    }
  }
}
