/** Counting of requests, and texts that are made for whoever opens them. */

import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { ErrorLog } from '../../../src/export/fuse/error-log.ts';
import { FileTree } from '../../../src/export/fuse/file-tree.ts';
import type { TreeEntry } from '../../../src/export/fuse/file-tree.ts';
import { FuseSession } from '../../../src/export/fuse/session.ts';
import type { SessionOptions } from '../../../src/export/fuse/session.ts';
import { SharedTexts } from '../../../src/export/fuse/shared-texts.ts';
import { LiveTextSource } from '../../../src/export/fuse/sources.ts';
import { WritableDisk } from '../../../src/export/fuse/writable-disk.ts';
import { allocateStats, RequestStats, sumStats } from '../../../src/util/request-stats.ts';
import { fileOf, readBody, requestBytes, TREE_OPTIONS, writeBody } from './wire.ts';

const READ = 15;
const OPEN = 14;
const LOOKUP = 1;

/** A session, and what it answered to requests that were put to it one after the other. */
function serve(
  entries: readonly TreeEntry[],
  requests: readonly Buffer[],
  { disk, ...options }: SessionOptions & { disk?: WritableDisk } = {},
): { errno: number; payload: Buffer }[] {
  const treeOptions = { ...TREE_OPTIONS, fileMode: 0o644, disk, hasLiveTexts: true };
  const tree = new FileTree(treeOptions, () => entries);
  const session = new FuseSession(tree, new ErrorLog(() => undefined), options);
  // Numbers its nodes.
  expect(tree.root.children).toHaveLength(entries.length);
  const waiting = [...requests];
  const replies: { errno: number; payload: Buffer }[] = [];
  session.serve({
    receive(buffer) {
      const request = waiting.shift();
      if (request === undefined) return 0;
      buffer.set(request);
      return request.length;
    },
    send(buffer, length) {
      const reply = Buffer.from(buffer.subarray(0, length));
      replies.push({ errno: 0 - reply.readInt32LE(4), payload: reply.subarray(16) });
    },
  });
  return replies;
}

const first = { nodeId: 2 };
const read = (offset: number, size: number, nodeId = 2, handle = 0n): Buffer => {
  const body = readBody(offset, size);
  body.writeBigUInt64LE(handle, 0);
  return requestBytes({ opcode: READ, nodeId }, body);
};
const allocate = (mode: number, length: number): Buffer => {
  const body = Buffer.alloc(32);
  body.writeBigUInt64LE(BigInt(length), 16);
  body.writeUInt32LE(mode, 24);
  return requestBytes({ opcode: 43, ...first }, body);
};

describe('a session with counters', () => {
  it('counts every request that it answers, with its bytes', () => {
    const device = new MemoryDevice(new Uint8Array(10_000));
    const disk = new WritableDisk(device, { modifiedMs: 0 });
    const memory = allocateStats(1);
    const entries: TreeEntry[] = [{ ...fileOf('disk.raw', device), writable: true } as TreeEntry];
    const requests = [
      requestBytes({ opcode: LOOKUP, nodeId: 1 }, Buffer.from('nothing\0')),
      read(0, 4096),
      read(8192, 4096),
      read(20_000, 4096),
      read(0, 4096, 77),
      requestBytes({ opcode: 16, ...first }, writeBody(0, new Uint8Array(512))),
      requestBytes({ opcode: 16, ...first }, writeBody(9999, new Uint8Array(512))),
      requestBytes({ opcode: 16, ...first }, writeBody(10_000, new Uint8Array(512))),
      allocate(0x02 | 0x01, 1000),
      allocate(0x10, 2000),
      requestBytes({ opcode: 20, ...first }, Buffer.alloc(16)),
      // FORGET, which has no reply.
      requestBytes({ opcode: 2, ...first }, Buffer.alloc(8)),
    ];
    const replies = serve(entries, requests, { disk, stats: new RequestStats(memory, 0) });
    expect(replies).toHaveLength(requests.length - 1);
    const { kinds } = sumStats(memory);
    expect(kinds.read).toMatchObject({ count: 4, errors: 1, bytes: 4096 + 1808 });
    expect(kinds.write).toMatchObject({ count: 3, errors: 1, bytes: 513 });
    expect(kinds.trim).toMatchObject({ count: 1, errors: 0, bytes: 1000 });
    expect(kinds.zero).toMatchObject({ count: 1, errors: 0, bytes: 2000 });
    expect(kinds.flush).toMatchObject({ count: 1, errors: 0 });
    expect(kinds.other).toMatchObject({ count: 1, errors: 0 });
    for (const { count, p50Ms, p99Ms, maxMs } of Object.values(kinds)) {
      expect(maxMs > 0).toBe(count > 0);
      expect(p50Ms).toBeLessThanOrEqual(p99Ms);
      expect(p99Ms).toBeLessThanOrEqual(maxMs);
    }
  });
});

describe('a live text', () => {
  let made = 0;
  const entries: TreeEntry[] = [
    {
      kind: 'file',
      name: 'stats',
      source: new LiveTextSource(
        () => `text ${++made}\n`,
        () => 20,
      ),
    },
  ];
  const open = requestBytes({ opcode: OPEN, ...first }, Buffer.alloc(8));
  const DIRECT_IO = 1;

  it('is one text for each who opens it, past the cache of the kernel', () => {
    const [one, two] = serve(entries, [open, open]);
    for (const { errno, payload } of [one!, two!]) {
      expect(errno).toBe(0);
      expect(payload.readUInt32LE(8) & DIRECT_IO).toBe(DIRECT_IO);
    }
    expect(one!.payload.readBigUInt64LE(0)).not.toBe(two!.payload.readBigUInt64LE(0));
  });

  it('is opened although the kernel could do without, and everything else with it', () => {
    const body = Buffer.alloc(64);
    [7, 38, 131_072, 0xffff_ffff].forEach((word, index) => body.writeUInt32LE(word, index * 4));
    const replies = serve(entries, [requestBytes({ opcode: 26, nodeId: 0 }, body), open]);
    expect(replies.map(({ errno }) => errno)).toEqual([0, 0]);
  });

  it('has a size of whole pages, which it does not reach', () => {
    const getattr = requestBytes({ opcode: 3, ...first }, Buffer.alloc(16));
    const seekHole = Buffer.alloc(24);
    seekHole.writeUInt32LE(4, 16);
    const seek = requestBytes({ opcode: 46, ...first }, seekHole);
    const [attributes, hole] = serve(entries, [getattr, seek]);
    expect(attributes!.payload.readBigUInt64LE(24)).toBe(4096n);
    expect(hole).toMatchObject({ errno: 0 });
    expect(hole!.payload.readBigUInt64LE(0)).toBe(4096n);
  });

  it('is the same for another session that is asked for it', () => {
    const sharedTexts = new SharedTexts(SharedTexts.allocate());
    const [opened] = serve(entries, [open], { sharedTexts });
    const text = `text ${made}\n`;
    const handle = opened!.payload.readBigUInt64LE(0);
    serve(entries, [open], { sharedTexts });
    const replies = serve(
      entries,
      [read(0, 3, 2, handle), read(3, 4096, 2, handle), read(text.length, 4096, 2, handle)],
      { sharedTexts },
    );
    expect(Buffer.concat(replies.map(({ payload }) => payload)).toString()).toBe(text);
  });
});

describe('SharedTexts', () => {
  const texts = () => new SharedTexts(SharedTexts.allocate());
  const textOf = (size: number, byte = 1) => new MemoryDevice(new Uint8Array(size).fill(byte));

  it('keeps the latest few, and knows nothing of others', () => {
    const shared = texts();
    const handles = Array.from({ length: 9 }, (_, index) => shared.keep(textOf(index, index))!);
    expect(new Set(handles).size).toBe(9);
    expect(shared.at(handles[0]!)).toBeUndefined();
    for (const [index, handle] of handles.entries()) {
      if (index > 0) expect(shared.at(handle)?.size).toBe(index);
    }
    for (const handle of [0, 1, 2 ** 40, handles[8]! + 1, 2 ** 52]) {
      expect(shared.at(handle)).toBeUndefined();
    }
  });

  it('does not take what is too long', () => {
    const shared = texts();
    expect(shared.keep(textOf(65_537))).toBeUndefined();
    const handle = shared.keep(textOf(65_536, 7))!;
    const read = new Uint8Array(65_536);
    shared.at(handle)!.read(read, 0);
    expect(read.every((byte) => byte === 7)).toBe(true);
  });
});
