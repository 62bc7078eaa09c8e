/**
 * Requests as the kernel writes them and replies as it reads them, laid out by hand from
 * `linux/fuse.h`, independently of the code under test. Little-endian, as the machines tests run on.
 */

import { MemoryDevice } from '../../../src/device/memory.ts';
import type { BlockDevice } from '../../../src/device/block-device.ts';
import { ErrorLog } from '../../../src/export/fuse/error-log.ts';
import { FileTree, openSource } from '../../../src/export/fuse/file-tree.ts';
import type { TreeEntry, TreeOptions } from '../../../src/export/fuse/file-tree.ts';
import { FuseSession } from '../../../src/export/fuse/session.ts';
import type { SessionOptions } from '../../../src/export/fuse/session.ts';
import type { WritableDisk } from '../../../src/export/fuse/writable-disk.ts';

export const TREE_OPTIONS: TreeOptions = {
  uid: 1000,
  gid: 1001,
  fileMode: 0o444,
  modifiedMs: 1_700_000_000_123,
  bytes: 1024 * 1024,
};

/** A file of a tree that holds a device. */
export function fileOf(name: string, device: BlockDevice): TreeEntry {
  return { kind: 'file', name, source: openSource(device) };
}

/** A file of a tree that holds a text. */
export function textFile(name: string, text: string): TreeEntry {
  return fileOf(name, new MemoryDevice(Buffer.from(text)));
}

export function directoryOf(name: string, entries: readonly TreeEntry[]): TreeEntry {
  return { kind: 'directory', name, entries: () => entries };
}

/** What came back: an error number, and the payload. */
export interface Reply {
  errno: number;
  unique: bigint;
  payload: Buffer;
}

/** A session over a tree, and a way to ask it. */
export class TestSession {
  readonly log: string[] = [];
  readonly session: FuseSession;
  #unique = 2n ** 62n + 7n;

  /** @param disk the disk that accepts writes */
  constructor(entries: readonly TreeEntry[], options: SessionOptions = {}, disk?: WritableDisk) {
    const treeOptions = {
      ...TREE_OPTIONS,
      fileMode: disk === undefined ? 0o444 : 0o644,
      get modifiedMs() {
        return disk?.modifiedMs ?? TREE_OPTIONS.modifiedMs;
      },
      disk,
    };
    const tree = new FileTree(treeOptions, () => entries);
    this.session = new FuseSession(tree, new ErrorLog((line) => this.log.push(line)), options);
  }

  /** Sends raw bytes; undefined if there is no reply. */
  raw(bytes: Uint8Array): Reply | undefined {
    const { session } = this;
    session.request.bytes.set(bytes);
    session.request.length = bytes.length;
    const length = session.handle();
    if (length === 0) return undefined;
    const reply = Buffer.from(session.reply.bytes.subarray(0, length));
    if (reply.readUInt32LE(0) !== length) throw new Error('the reply tells a wrong length');
    return {
      errno: 0 - reply.readInt32LE(4),
      unique: reply.readBigUInt64LE(8),
      payload: reply.subarray(16),
    };
  }

  /** Sends a request that has to be answered. */
  ask(opcode: number, nodeId: number, body: Uint8Array = Buffer.alloc(0)): Reply {
    const unique = this.#unique++;
    const reply = this.raw(requestBytes({ opcode, nodeId, unique }, body));
    if (reply === undefined) throw new Error(`request ${opcode} was not answered`);
    if (reply.unique !== unique) throw new Error('the reply belongs to another request');
    return reply;
  }

  /** Negotiates as Linux 6 does, with every flag. */
  init(flags = 0xffff_ffff, minor = 38): Reply {
    const body = Buffer.alloc(64);
    [7, minor, 131_072, flags].forEach((word, index) => body.writeUInt32LE(word, index * 4));
    return this.ask(26, 0, body);
  }

  /** Looks a path up, one name after the other; the inode number. */
  find(...names: readonly string[]): number {
    let inode = 1;
    for (const name of names) {
      const { errno, payload } = this.ask(1, inode, Buffer.from(`${name}\0`));
      if (errno !== 0) throw new Error(`LOOKUP ${name}: errno ${errno}`);
      inode = Number(payload.readBigUInt64LE(0));
      if (inode === 0) throw new Error(`there is no ${name}`);
    }
    return inode;
  }

  read(inode: number, offset: number | bigint, size: number): Reply {
    return this.ask(15, inode, readBody(offset, size));
  }

  seek(inode: number, offset: number | bigint, whence: number): Reply {
    const body = Buffer.alloc(24);
    body.writeBigUInt64LE(BigInt(offset), 8);
    body.writeUInt32LE(whence, 16);
    return this.ask(46, inode, body);
  }

  /** Opens a file; the reply. `flags` are open(2)'s. */
  open(inode: number, flags = 0): Reply {
    const body = Buffer.alloc(8);
    body.writeUInt32LE(flags, 0);
    return this.ask(14, inode, body);
  }

  write(inode: number, offset: number | bigint, bytes: Uint8Array, how: WriteWay = {}): Reply {
    const unique = this.#unique++;
    const reply = this.raw(
      requestBytes({ opcode: 16, nodeId: inode, unique }, writeBody(offset, bytes, how)),
    );
    // Somebody else is to send it.
    return reply ?? { errno: DEFERRED, unique, payload: Buffer.alloc(0) };
  }

  /** FALLOCATE. */
  allocate(inode: number, mode: number, offset: number | bigint, length: number | bigint): Reply {
    const body = Buffer.alloc(32);
    body.writeBigUInt64LE(BigInt(offset), 8);
    body.writeBigUInt64LE(BigInt(length), 16);
    body.writeUInt32LE(mode, 24);
    return this.ask(43, inode, body);
  }

  /** The names of a directory, in requests of `size` bytes each. */
  list(inode: number, { size = 4096, plus = false } = {}): Listed[] {
    const all: Listed[] = [];
    for (let offset = 0n; ;) {
      const reply = this.ask(plus ? 44 : 28, inode, readBody(offset, size));
      if (reply.errno !== 0) throw new Error(`READDIR: errno ${reply.errno}`);
      if (reply.payload.length > size) throw new Error('the listing is longer than asked for');
      const entries = parseEntries(reply.payload, plus);
      if (entries.length === 0) return all;
      all.push(...entries);
      offset = entries.at(-1)!.next;
    }
  }
}

/** An entry of a listing. */
export interface Listed {
  name: string;
  inode: bigint;
  type: number;
  next: bigint;
  /** READDIRPLUS: the inode number of the attributes; 0 if there are none. */
  attributesOf?: bigint;
}

/** The error number of a {@link TestSession.write} that was not answered by the session itself. */
export const DEFERRED = -1;

/** How a WRITE came about. */
export interface WriteWay {
  /** From pages that were changed through mmap. */
  isFromCache?: boolean;
  /** By a file that was opened with O_DIRECT. */
  isDirect?: boolean;
}

/** The arguments of a WRITE, and its data. */
export function writeBody(offset: number | bigint, bytes: Uint8Array, how: WriteWay = {}): Buffer {
  const body = Buffer.alloc(40 + bytes.length);
  body.writeBigUInt64LE(BigInt(offset), 8);
  body.writeUInt32LE(bytes.length, 16);
  body.writeUInt32LE(how.isFromCache === true ? 1 : 0, 20);
  body.writeUInt32LE(how.isDirect === true ? 0o40000 : 0, 32);
  body.set(bytes, 40);
  return body;
}

export function requestBytes(
  header: { opcode: number; nodeId: number; unique?: bigint },
  body: Uint8Array = Buffer.alloc(0),
): Buffer {
  const bytes = Buffer.alloc(40 + body.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt32LE(header.opcode, 4);
  bytes.writeBigUInt64LE(header.unique ?? 2n, 8);
  bytes.writeBigUInt64LE(BigInt(header.nodeId), 16);
  bytes.set(body, 40);
  return bytes;
}

export function readBody(offset: number | bigint, size: number): Buffer {
  const body = Buffer.alloc(40);
  body.writeBigUInt64LE(BigInt(offset), 8);
  body.writeUInt32LE(size, 16);
  return body;
}

function parseEntries(payload: Buffer, plus: boolean): Listed[] {
  const entries: Listed[] = [];
  for (let at = 0; at < payload.length;) {
    const attributesOf = plus ? payload.readBigUInt64LE(at) : undefined;
    if (plus) at += 128;
    const nameLength = payload.readUInt32LE(at + 16);
    entries.push({
      inode: payload.readBigUInt64LE(at),
      next: payload.readBigUInt64LE(at + 8),
      type: payload.readUInt32LE(at + 20),
      name: payload.toString('utf8', at + 24, at + 24 + nameLength),
      ...(attributesOf === undefined ? {} : { attributesOf }),
    });
    at += Math.ceil((24 + nameLength) / 8) * 8;
  }
  return entries;
}
