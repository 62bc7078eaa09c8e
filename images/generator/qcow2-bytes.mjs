/** Reads and patches single structures of a qcow2 file, to forge what QEMU does not write. */

import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';

const OFFSET_MASK = 0x00ff_ffff_ffff_fe00n;

/** A qcow2 file opened for patching: offsets are bytes in the file, values are BigInts or numbers. */
export class Qcow2Bytes {
  #fd;

  constructor(path) {
    this.#fd = openSync(path, 'r+');
  }

  /** Opens `path`, hands it to `patch`, and closes it. */
  static patch(path, patch) {
    const bytes = new Qcow2Bytes(path);
    try {
      patch(bytes);
    } finally {
      closeSync(bytes.#fd);
    }
  }

  get length() {
    return fstatSync(this.#fd).size;
  }

  truncate(length) {
    ftruncateSync(this.#fd, length);
  }

  read(offset, length) {
    const buffer = Buffer.alloc(length);
    readSync(this.#fd, buffer, 0, length, offset);
    return buffer;
  }

  write(offset, bytes) {
    writeSync(this.#fd, bytes, 0, bytes.length, offset);
  }

  u8(offset) {
    return this.read(offset, 1)[0];
  }

  u16(offset) {
    return this.read(offset, 2).readUInt16BE();
  }

  u32(offset) {
    return this.read(offset, 4).readUInt32BE();
  }

  u64(offset) {
    return this.read(offset, 8).readBigUInt64BE();
  }

  setU8(offset, value) {
    this.write(offset, Buffer.from([value]));
  }

  setU16(offset, value) {
    const buffer = Buffer.alloc(2);
    buffer.writeUInt16BE(value);
    this.write(offset, buffer);
  }

  setU32(offset, value) {
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32BE(value);
    this.write(offset, buffer);
  }

  setU64(offset, value) {
    const buffer = Buffer.alloc(8);
    buffer.writeBigUInt64BE(BigInt(value));
    this.write(offset, buffer);
  }

  /** Changes a 64-bit value by a function of the old one. */
  updateU64(offset, change) {
    this.setU64(offset, change(this.u64(offset)));
  }

  get clusterSize() {
    return 1 << this.u32(20);
  }

  get headerLength() {
    return this.u32(4) === 2 ? 72 : this.u32(100);
  }

  /** Offset of the active L1 table. */
  get l1() {
    return Number(this.u64(40));
  }

  /** Offset of the refcount table. */
  get refcountTable() {
    return Number(this.u64(48));
  }

  get snapshotTable() {
    return Number(this.u64(64));
  }

  /** Offset of the L2 table that entry `index` of the active L1 table points to. */
  l2(index = 0) {
    return Number(this.u64(this.l1 + 8 * index) & OFFSET_MASK);
  }

  /** Offset of the entry for guest cluster `cluster` in the active mapping. */
  l2Entry(cluster) {
    const isExtended = this.u32(4) > 2 && (this.u64(72) & 16n) !== 0n;
    const entrySize = isExtended ? 16 : 8;
    const perTable = this.clusterSize / entrySize;
    return this.l2(Math.floor(cluster / perTable)) + (cluster % perTable) * entrySize;
  }

  /** Offset of refcount block `index`. */
  refcountBlock(index = 0) {
    return Number(this.u64(this.refcountTable + 8 * index) & ~0x1ffn);
  }

  /** Offset of the refcount of the cluster at `hostOffset`; for 16-bit refcounts in block 0. */
  refcountOf(hostOffset) {
    return this.refcountBlock() + 2 * (hostOffset / this.clusterSize);
  }

  /** Where guest cluster `cluster` is stored. */
  dataOffset(cluster) {
    return Number(this.u64(this.l2Entry(cluster)) & OFFSET_MASK);
  }

  /** Rows of the snapshot table, as the offsets of their starts. */
  get snapshotRows() {
    const rows = [];
    let at = this.snapshotTable;
    for (let index = 0; index < this.u32(60); index++) {
      rows.push(at);
      const length = 40 + this.u32(at + 36) + this.u16(at + 12) + this.u16(at + 14);
      at += Math.ceil(length / 8) * 8;
    }
    return rows;
  }

  /** Dates all snapshots an hour apart, from `seconds` on. */
  dateSnapshots(seconds) {
    for (const [index, row] of this.snapshotRows.entries()) {
      this.setU32(row + 16, seconds + index * 3600);
      this.setU32(row + 20, 0);
    }
  }

  /** Header extensions: type, offset of the type field, and length of the data. */
  get extensions() {
    const found = [];
    let at = this.headerLength;
    while (at + 8 <= this.clusterSize) {
      const type = this.u32(at);
      const length = this.u32(at + 4);
      if (type === 0) break;
      found.push({ type, offset: at, length });
      at += 8 + Math.ceil(length / 8) * 8;
    }
    return found;
  }

  /** The header extension of a type, which has to be there. */
  extension(type) {
    const found = this.extensions.find((extension) => extension.type === type);
    if (found === undefined) throw new Error(`no extension 0x${type.toString(16)}`);
    return found;
  }

  /** Puts an extension before all others. Needs room behind the last one. */
  insertExtension(type, data) {
    const start = this.headerLength;
    const last = this.extensions.at(-1);
    const end = last === undefined ? start : last.offset + 8 + Math.ceil(last.length / 8) * 8;
    const backingOffset = Number(this.u64(8));
    const nameEnd = backingOffset === 0 ? end + 8 : backingOffset + this.u32(16);
    const rest = this.read(start, nameEnd - start);
    const inserted = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
    inserted.writeUInt32BE(type, 0);
    inserted.writeUInt32BE(data.length, 4);
    inserted.set(data, 8);
    this.write(start + inserted.length, rest);
    this.write(start, inserted);
    if (backingOffset !== 0) this.setU64(8, backingOffset + inserted.length);
  }

  /** Adds a zeroed cluster at the end of the file, without counting it, and returns its offset. */
  appendCluster() {
    const offset = Math.ceil(this.length / this.clusterSize) * this.clusterSize;
    this.truncate(offset + this.clusterSize);
    return offset;
  }
}
