/**
 * The FUSE kernel protocol, version 7: the part that a filesystem of files with fixed names and
 * sizes speaks.
 *
 * The reference is the kernel's own header, `linux/fuse.h`; names are its names. Every structure
 * is made of 32-bit words in the host's byte order, so a message is looked at through a
 * `Uint32Array` and fields are named by their word. 64-bit values become `number`s; one above 2^53
 * is only ever compared with a size or an inode number, for which its rounding does not matter.
 */

import { constants } from 'node:fs';

/** Major version of the protocol. */
export const FUSE_KERNEL_VERSION = 7;
/** The minor version that is answered to a kernel that knows it. */
export const FUSE_KERNEL_MINOR_VERSION = 31;
/** Oldest minor version that is served: the first whose INIT reply has 64 bytes (Linux 3.15). */
export const OLDEST_MINOR_VERSION = 23;
/** Inode number of the root directory. */
export const FUSE_ROOT_ID = 1;
/** The kernel refuses to write a request into a buffer that is smaller. */
export const FUSE_MIN_READ_BUFFER = 8192;

/** Request codes. */
export const Opcode = {
  LOOKUP: 1,
  FORGET: 2,
  GETATTR: 3,
  SETATTR: 4,
  READLINK: 5,
  SYMLINK: 6,
  MKNOD: 8,
  MKDIR: 9,
  UNLINK: 10,
  RMDIR: 11,
  RENAME: 12,
  LINK: 13,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  STATFS: 17,
  RELEASE: 18,
  FSYNC: 20,
  SETXATTR: 21,
  GETXATTR: 22,
  LISTXATTR: 23,
  REMOVEXATTR: 24,
  FLUSH: 25,
  INIT: 26,
  OPENDIR: 27,
  READDIR: 28,
  RELEASEDIR: 29,
  FSYNCDIR: 30,
  ACCESS: 34,
  CREATE: 35,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
  FALLOCATE: 43,
  READDIRPLUS: 44,
  RENAME2: 45,
  LSEEK: 46,
  COPY_FILE_RANGE: 47,
  SYNCFS: 50,
  TMPFILE: 51,
} as const;

/** Bits of the flags that INIT negotiates. */
export const InitFlag = {
  ASYNC_READ: 1 << 0,
  EXPORT_SUPPORT: 1 << 4,
  BIG_WRITES: 1 << 5,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  NO_OPEN_SUPPORT: 1 << 17,
  PARALLEL_DIROPS: 1 << 18,
  MAX_PAGES: 1 << 22,
  CACHE_SYMLINKS: 1 << 23,
  NO_OPENDIR_SUPPORT: 1 << 24,
} as const;

/** Bits of `fuse_open_out.open_flags`. */
export const OpenFlag = { DIRECT_IO: 1 << 0, KEEP_CACHE: 1 << 1, CACHE_DIR: 1 << 3 } as const;

/** Bits of `fuse_write_in.write_flags`. CACHE: pages that were changed through mmap. */
export const WriteFlag = { CACHE: 1 << 0 } as const;

/** Bits of `fuse_setattr_in.valid`. */
export const SetAttribute = {
  MODE: 1 << 0,
  UID: 1 << 1,
  GID: 1 << 2,
  SIZE: 1 << 3,
  MTIME: 1 << 5,
  MTIME_NOW: 1 << 8,
} as const;

/** Bits of `fuse_fallocate_in.mode`, as fallocate(2) has them. */
export const FallocateFlag = { KEEP_SIZE: 0x01, PUNCH_HOLE: 0x02, ZERO_RANGE: 0x10 } as const;

/** The two lowest bits of `open(2)`'s flags; 0 is reading only. */
export const ACCESS_MODE = 3;
/** The flag of open(2) for going past the kernel's cache; 0 where there is none. */
export const O_DIRECT = (constants as { O_DIRECT?: number }).O_DIRECT ?? 0;

/** What is sent without a request: `error` of the header, which then has no `unique`. */
export const Notify = { INVAL_INODE: 2 } as const;

/** `whence` of LSEEK; the kernel answers the other kinds itself. */
export const Whence = { SEEK_DATA: 3, SEEK_HOLE: 4 } as const;

/** File type bits of `fuse_attr.mode`; shifted right by 12 they are a directory entry's type. */
export const FileType = { DIRECTORY: 0o040000, REGULAR: 0o100000 } as const;

/** Bytes of the structures that start every message or stand alone in one. */
export const Size = {
  inHeader: 40,
  outHeader: 16,
  attr: 88,
  entryOut: 128,
  attrOut: 104,
  openOut: 16,
  initOut: 64,
  statfsOut: 80,
  writeOut: 8,
  lseekOut: 8,
  dirent: 24,
  /** Header and arguments of a WRITE; its data follow. */
  writeRequest: 80,
} as const;

/** Words of `fuse_in_header`. */
const InHeader = { len: 0, opcode: 1, unique: 2, nodeid: 4 } as const;

/** Words of the arguments that follow the header, counted from the start of the message. */
export const Argument = {
  initMajor: 10,
  initMinor: 11,
  initMaxReadahead: 12,
  initFlags: 13,
  openFlags: 10,
  /** Of READ, WRITE, LSEEK and RELEASE alike. */
  handle: 10,
  readOffset: 12,
  readSize: 14,
  readOpenFlags: 18,
  writeOffset: 12,
  writeSize: 14,
  writeFlags: 15,
  writeOpenFlags: 18,
  lseekOffset: 12,
  lseekWhence: 14,
  fallocateOffset: 12,
  fallocateLength: 14,
  fallocateMode: 16,
  setattrValid: 10,
  setattrSize: 14,
  setattrMtime: 20,
  setattrMtimeNanoseconds: 25,
  setattrMode: 27,
  setattrUid: 29,
  setattrGid: 30,
} as const;

/** Bytes that a request of a kind has at least, header included; the others need their header. */
export function minimumRequestBytes(opcode: number): number {
  switch (opcode) {
    case Opcode.INIT:
      return Size.inHeader + 16;
    case Opcode.READ:
    case Opcode.READDIR:
    case Opcode.READDIRPLUS:
      return Size.inHeader + 24;
    case Opcode.LSEEK:
      return Size.inHeader + 24;
    case Opcode.LOOKUP:
      return Size.inHeader + 1;
    case Opcode.OPEN:
      return Size.inHeader + 8;
    case Opcode.WRITE:
      return Size.writeRequest;
    case Opcode.FALLOCATE:
      return Size.inHeader + 32;
    case Opcode.SETATTR:
      return Size.inHeader + 88;
    default:
      return Size.inHeader;
  }
}

const TWO_32 = 0x1_0000_0000;
const isLittleEndian = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;
/** Which word of a 64-bit value is the low half. */
const LOW = isLittleEndian ? 0 : 1;
const HIGH = 1 - LOW;

/** A buffer that the kernel writes one request into. */
export class RequestBuffer {
  readonly bytes: Buffer;
  readonly #words: Uint32Array;
  readonly #written: (Uint8Array | undefined)[] = [];
  /** Bytes of the request that is in the buffer. */
  length = 0;

  /** @param capacity bytes; a multiple of 8, at least {@link FUSE_MIN_READ_BUFFER} */
  constructor(capacity: number) {
    this.bytes = Buffer.alloc(capacity);
    this.#words = new Uint32Array(this.bytes.buffer, this.bytes.byteOffset, capacity / 4);
  }

  get opcode(): number {
    return this.#words[InHeader.opcode]!;
  }

  get nodeId(): number {
    return this.u64(InHeader.nodeid);
  }

  /** Whether a whole request of the length that its header says is there. */
  get isWellFormed(): boolean {
    if (this.length < Size.inHeader || this.length > this.bytes.length) return false;
    if (this.#words[InHeader.len] !== this.length) return false;
    return this.length >= minimumRequestBytes(this.opcode);
  }

  /** The first half of the request's `unique`, in memory order; with the second it names it. */
  get uniqueFirst(): number {
    return this.#words[InHeader.unique]!;
  }

  get uniqueSecond(): number {
    return this.#words[InHeader.unique + 1]!;
  }

  u32(word: number): number {
    return this.#words[word]!;
  }

  u64(word: number): number {
    return this.#words[word + HIGH]! * TWO_32 + this.#words[word + LOW]!;
  }

  /**
   * The data of a WRITE; undefined if the request ends before them. Views of whole pages are kept.
   */
  written(length: number): Uint8Array | undefined {
    const end = Size.writeRequest + length;
    if (end > this.length) return undefined;
    if (length % 4096 !== 0) return this.bytes.subarray(Size.writeRequest, end);
    return (this.#written[length / 4096] ??= this.bytes.subarray(Size.writeRequest, end));
  }

  /** The NUL-terminated name that follows the header, as LOOKUP carries it; undefined without NUL. */
  name(): string | undefined {
    const end = this.bytes.indexOf(0, Size.inHeader);
    if (end < 0 || end >= this.length) return undefined;
    return this.bytes.toString('utf8', Size.inHeader, end);
  }
}

/** What `fuse_attr` says of a file or directory. */
export interface Attributes {
  inode: number;
  size: number;
  /** Space that it takes, in units of 512 bytes. */
  blocks: number;
  /** Type and permission bits. */
  mode: number;
  linkCount: number;
  uid: number;
  gid: number;
  /** Modification time in milliseconds since 1970; stands for the other times too. */
  modifiedMs: number;
}

/** What `fuse_init_out` says. */
export interface InitReply {
  minor: number;
  maxReadahead: number;
  flags: number;
  maxBackground: number;
  maxWrite: number;
  maxPages: number;
}

/** A buffer that a reply is composed in: header first, then the payload. */
export class ReplyBuffer {
  readonly bytes: Buffer;
  readonly #words: Uint32Array;
  readonly #payloads: (Uint8Array | undefined)[] = [];

  /** @param capacity most bytes of payload; a multiple of 4096 */
  constructor(capacity: number) {
    this.bytes = Buffer.alloc(Size.outHeader + capacity);
    const { buffer, byteOffset, length } = this.bytes;
    this.#words = new Uint32Array(buffer, byteOffset, length / 4);
  }

  /** Most bytes of payload. */
  get capacity(): number {
    return this.bytes.length - Size.outHeader;
  }

  /** Where the payload goes. Views of whole pages are kept: reads ask for the same few sizes. */
  payload(length: number): Uint8Array {
    if (length % 4096 !== 0) return this.bytes.subarray(Size.outHeader, Size.outHeader + length);
    return (this.#payloads[length / 4096] ??= this.bytes.subarray(
      Size.outHeader,
      Size.outHeader + length,
    ));
  }

  /**
   * Writes the header and returns the length of the whole reply.
   *
   * @param errno 0, or the positive number of the error; an error carries no payload
   */
  finish(request: RequestBuffer, errno: number, payloadBytes: number): number {
    const words = this.#words;
    const length = Size.outHeader + payloadBytes;
    words[0] = length;
    words[1] = -errno;
    words[2] = request.uniqueFirst;
    words[3] = request.uniqueSecond;
    return length;
  }

  /** The error number of the reply that was finished last; 0 for none. */
  get errno(): number {
    return -this.#words[1]! >>> 0;
  }

  /** What {@link putWritten} put last. */
  get written(): number {
    return this.#words[4]!;
  }

  /** `fuse_init_out`; returns its bytes. */
  putInit(init: InitReply): number {
    const words = this.#words;
    words.fill(0, 4, 4 + Size.initOut / 4);
    words[4] = FUSE_KERNEL_VERSION;
    words[5] = init.minor;
    words[6] = init.maxReadahead;
    words[7] = init.flags;
    // max_background and congestion_threshold are 16 bits each, as are max_pages and alignment.
    words[8] = pairOf16(init.maxBackground, Math.floor((init.maxBackground * 3) / 4));
    words[9] = init.maxWrite;
    words[10] = 1; // time_gran, in nanoseconds
    words[11] = pairOf16(init.maxPages, 0);
    return Size.initOut;
  }

  /**
   * `fuse_entry_out`, at a byte of the payload; returns its bytes.
   *
   * @param valid how long the kernel may keep the name and the attributes, in seconds
   */
  putEntry(attributes: Attributes, valid: { name: number; attributes: number }, at = 0): number {
    this.#put64(at, attributes.inode);
    this.#put64(at + 8, 0); // generation: inode numbers are never used again
    this.#put64(at + 16, valid.name);
    this.#put64(at + 24, valid.attributes);
    this.#put64(at + 32, 0); // the nanoseconds of both
    this.#putAttr(at + 40, attributes);
    return Size.entryOut;
  }

  /** `fuse_entry_out` that says that there is no such name, and for how long; returns its bytes. */
  putNoEntry(validSeconds: number, at = 0): number {
    this.payload(at + Size.entryOut).fill(0, at);
    this.#put64(at + 16, validSeconds);
    return Size.entryOut;
  }

  /** `fuse_attr_out`; returns its bytes. */
  putAttributes(attributes: Attributes, validSeconds: number): number {
    this.#put64(0, validSeconds);
    this.#put64(8, 0);
    this.#putAttr(16, attributes);
    return Size.attrOut;
  }

  /**
   * `fuse_open_out`; returns its bytes. Requests name their inode, so that most need no handle.
   */
  putOpen(openFlags: number, handle = 0): number {
    this.#put64(0, handle);
    this.#put32(8, openFlags);
    this.#put32(12, 0);
    return Size.openOut;
  }

  /** `fuse_statfs_out`; returns its bytes. */
  putStatfs(statfs: { blocks: number; files: number; blockBytes: number }): number {
    this.payload(Size.statfsOut).fill(0);
    this.#put64(0, statfs.blocks);
    this.#put64(24, statfs.files);
    this.#put32(40, statfs.blockBytes);
    this.#put32(44, 255); // namelen
    this.#put32(48, statfs.blockBytes);
    return Size.statfsOut;
  }

  /** `fuse_write_out`; returns its bytes. */
  putWritten(length: number): number {
    this.#put64(0, 0);
    this.#put32(0, length);
    return Size.writeOut;
  }

  /** `fuse_lseek_out`; returns its bytes. */
  putOffset(offset: number): number {
    this.#put64(0, offset);
    return Size.lseekOut;
  }

  /**
   * `fuse_dirent` at a byte of the payload; returns its bytes, padded, or 0 if it passes `limit`.
   *
   * @param entry.next the offset that continues the listing after this entry
   */
  putDirent(entry: DirectoryEntry, at: number, limit: number): number {
    const { name } = entry;
    const length = direntBytes(name.length);
    if (at + length > limit) return 0;
    this.#put64(at, entry.inode);
    this.#put64(at + 8, entry.next);
    this.#put32(at + 16, name.length);
    this.#put32(at + 20, entry.mode >>> 12);
    const start = Size.outHeader + at + Size.dirent;
    this.bytes.set(name, start);
    this.bytes.fill(0, start + name.length, Size.outHeader + at + length);
    return length;
  }

  #put32(at: number, value: number): void {
    this.#words[(Size.outHeader + at) >>> 2] = value;
  }

  #put64(at: number, value: number): void {
    const word = (Size.outHeader + at) >>> 2;
    this.#words[word + LOW] = value % TWO_32;
    this.#words[word + HIGH] = Math.floor(value / TWO_32);
  }

  #putAttr(at: number, attributes: Attributes): void {
    const seconds = Math.max(0, Math.floor(attributes.modifiedMs / 1000));
    const nanoseconds = Math.floor(Math.max(0, attributes.modifiedMs % 1000) * 1e6);
    this.#put64(at, attributes.inode);
    this.#put64(at + 8, attributes.size);
    this.#put64(at + 16, attributes.blocks);
    for (let time = 0; time < 3; time++) {
      this.#put64(at + 24 + time * 8, seconds);
      this.#put32(at + 48 + time * 4, nanoseconds);
    }
    this.#put32(at + 60, attributes.mode);
    this.#put32(at + 64, attributes.linkCount);
    this.#put32(at + 68, attributes.uid);
    this.#put32(at + 72, attributes.gid);
    this.#put32(at + 76, 0); // rdev
    this.#put32(at + 80, 4096); // blksize
    this.#put32(at + 84, 0); // flags
  }
}

/** What a directory lists. */
export interface DirectoryEntry {
  inode: number;
  /** Only the type bits count. */
  mode: number;
  name: Uint8Array;
  next: number;
}

/** Bytes of a `fuse_dirent` with a name of `nameBytes`: padded to 8. */
export function direntBytes(nameBytes: number): number {
  return Size.dirent + Math.ceil(nameBytes / 8) * 8;
}

function pairOf16(first: number, second: number): number {
  return isLittleEndian ? ((second << 16) | first) >>> 0 : ((first << 16) | second) >>> 0;
}
