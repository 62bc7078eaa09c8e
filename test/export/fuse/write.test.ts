import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import type { InvalidationJob } from '../../../src/export/fuse/invalidations.ts';
import { Invalidations } from '../../../src/export/fuse/invalidations.ts';
import type { TreeEntry } from '../../../src/export/fuse/file-tree.ts';
import { openSource } from '../../../src/export/fuse/file-tree.ts';
import { ChangingTextSource } from '../../../src/export/fuse/sources.ts';
import { WritableDisk } from '../../../src/export/fuse/writable-disk.ts';
import { DEFERRED, directoryOf, requestBytes, TestSession, textFile, writeBody } from './wire.ts';

const [EPERM, ENOENT, EIO, EISDIR, EINVAL, ENOSPC, EROFS, EOPNOTSUPP, EDQUOT] = [
  1, 2, 5, 21, 22, 28, 30, 95, 122,
];
const [KEEP_SIZE, PUNCH, ZERO] = [1, 2, 16];
const O_RDWR = 2;
const BYTES = 64 * 1024;

interface Setting {
  session: TestSession;
  device: MemoryDevice;
  disk: WritableDisk;
  jobs: InvalidationJob[];
  done: Int32Array;
  inode: Record<'disk' | 'first' | 'second' | 'top' | 'note', number>;
}

/** A disk of 64 KiB of which two halves are partitions, a view for reading, and an unrelated file. */
function setting(options: { directIo?: boolean } = {}): Setting {
  const device = new MemoryDevice(new Uint8Array(BYTES));
  const disk = new WritableDisk(device, { modifiedMs: 1_700_000_000_123 });
  const source = openSource(device);
  const part = (name: string, offset: number): TreeEntry => ({
    ...{ kind: 'file', name, source, writable: true },
    range: { offset, length: BYTES / 2 },
  });
  const text = new ChangingTextSource(
    () => [`changed ${disk.changes} times`],
    () => disk.changes,
  );
  const entries: TreeEntry[] = [
    { kind: 'file', name: 'disk', source, writable: true },
    part('first', 0),
    part('second', BYTES / 2),
    { kind: 'file', name: 'top', source },
    { kind: 'file', name: 'text', source: text },
    textFile('note', 'hello'),
    directoryOf('folder', []),
  ];
  const jobs: InvalidationJob[] = [];
  const done = new Int32Array(1);
  const invalidations = new Invalidations((job) => jobs.push(job), done);
  const session = new TestSession(entries, { ...options, invalidations }, disk);
  session.init();
  const inode = {
    disk: session.find('disk'),
    first: session.find('first'),
    second: session.find('second'),
    top: session.find('top'),
    note: session.find('note'),
  };
  return { session, device, disk, jobs, done, inode };
}

const bytes = (text: string): Buffer => Buffer.from(text);

describe('WRITE', () => {
  it('stores the bytes in the file and in the disk, and tells how many', () => {
    const { session, device, inode } = setting();
    const { errno, payload } = session.write(inode.second, 100, bytes('some bytes'));
    expect([errno, payload.readUInt32LE(0), payload.length]).toEqual([0, 10, 8]);
    expect(Buffer.from(device.bytes.subarray(BYTES / 2 + 100)).toString('utf8', 0, 10)).toBe(
      'some bytes',
    );
    expect(session.read(inode.second, 100, 10).payload.toString()).toBe('some bytes');
    expect(session.read(inode.disk, BYTES / 2 + 100, 10).payload.toString()).toBe('some bytes');
  });

  it('takes a megabyte, and no more', () => {
    const device = new MemoryDevice(new Uint8Array(2 ** 21));
    const disk = new WritableDisk(device, { modifiedMs: 0 });
    const file: TreeEntry = {
      ...{ kind: 'file', name: 'f', source: openSource(device), writable: true },
    };
    const session = new TestSession([file], {}, disk);
    expect(session.init().payload.readUInt32LE(20)).toBe(2 ** 20);
    const inode = session.find('f');
    const data = Buffer.alloc(2 ** 20, 'data ');
    expect(session.write(inode, 5, data)).toMatchObject({ errno: 0 });
    expect(Buffer.from(device.bytes.subarray(5, 5 + 2 ** 20)).equals(data)).toBe(true);
  });

  it('stops at the end of the file as at the end of a block device', () => {
    const { session, device, inode } = setting();
    expect(session.write(inode.first, BYTES / 2 - 3, bytes('abcdef')).payload.readUInt32LE(0)).toBe(
      3,
    );
    // The next partition begins there.
    expect(device.bytes[BYTES / 2]).toBe(0);
    expect(session.write(inode.first, BYTES / 2, bytes('x')).errno).toBe(ENOSPC);
    expect(session.write(inode.disk, BYTES, bytes('x')).errno).toBe(ENOSPC);
    expect(session.write(inode.disk, 2n ** 64n - 1n, bytes('x')).errno).toBe(ENOSPC);
    expect(session.write(inode.disk, 2n ** 63n, bytes('x')).errno).toBe(ENOSPC);
    expect(session.write(inode.disk, BYTES, Buffer.alloc(0))).toMatchObject({ errno: 0 });
  });

  it('is refused by what can only be read, and by what is no file', () => {
    const { session, device, inode } = setting();
    expect(session.write(inode.top, 0, bytes('x')).errno).toBe(EROFS);
    expect(session.write(inode.note, 0, bytes('x')).errno).toBe(EROFS);
    expect(session.write(1, 0, bytes('x')).errno).toBe(EISDIR);
    expect(session.write(999, 0, bytes('x')).errno).toBe(ENOENT);
    expect(device.bytes.every((byte) => byte === 0)).toBe(true);
  });

  it('whose data are not all there is refused', () => {
    const { session, inode, device } = setting();
    const body = Buffer.alloc(48);
    body.writeUInt32LE(4096, 16);
    body.fill(7, 40);
    expect(session.ask(16, inode.disk, body).errno).toBe(EINVAL);
    body.writeUInt32LE(0xffff_ffff, 16);
    expect(session.ask(16, inode.disk, body).errno).toBe(EINVAL);
    expect(session.ask(16, inode.disk, Buffer.alloc(8)).errno).toBe(EIO);
    expect(device.bytes.every((byte) => byte === 0)).toBe(true);
  });

  it.each([
    ['ENOSPC', ENOSPC],
    ['EDQUOT', EDQUOT],
    ['EIO', EIO],
    [undefined, EIO],
  ])('that the host refuses with %s is answered with %i, and logged', (code, errno) => {
    const { session, device, inode } = setting();
    const cause = code === undefined ? undefined : Object.assign(new Error(), { code });
    device.write = () => {
      throw new Qcow2Error('HOST', 'cannot write', { cause });
    };
    expect(session.write(inode.disk, 0, bytes('x')).errno).toBe(errno);
    expect(session.log).toEqual(['disk: cannot write']);
  });
});

describe('a buffered write', () => {
  /** Serves requests; `look` is called when each has been answered. */
  function serve(
    { session: { session } }: Setting,
    requests: readonly Buffer[],
    look: (errno: number) => void,
  ): void {
    const queue = [...requests];
    session.serve({
      receive(buffer) {
        const next = queue.shift();
        if (next !== undefined) buffer.set(next);
        return next?.length ?? 0;
      },
      send: (buffer) => look(0 - new Int32Array(buffer.buffer, buffer.byteOffset, 2)[1]!),
    });
  }
  const requestTo = (inode: number) => (opcode: number, body: Uint8Array) =>
    requestBytes({ opcode, nodeId: inode }, body);

  it('is answered before it is done, and done before the next request; not with O_DIRECT', () => {
    const all = setting();
    const request = requestTo(all.inode.disk);
    const stored: number[] = [];
    const requests = [
      request(16, writeBody(0, bytes('a'))),
      request(16, writeBody(1, bytes('b'))),
      request(16, writeBody(2, bytes('c'), { isDirect: true })),
    ];
    serve(all, requests, () => stored.push(all.device.bytes.indexOf(0)));
    expect(stored).toEqual([0, 1, 3]);
    expect(all.device.bytes.indexOf(0)).toBe(3);
  });

  it('that fails then is told to who closes, and once to the next who syncs or writes', () => {
    const all = setting();
    const { device, inode, session } = all;
    const request = requestTo(inode.disk);
    const cause = Object.assign(new Error(), { code: 'ENOSPC' });
    const store = device.write.bind(device);
    const write = request(16, writeBody(0, bytes('a')));
    const fsync = request(20, Buffer.alloc(16));
    const close = request(25, Buffer.alloc(24));
    const closeOther = requestTo(inode.note)(25, Buffer.alloc(24));
    const results: number[] = [];
    device.write = () => {
      throw new Qcow2Error('HOST', 'no space', { cause });
    };
    const look = (errno: number) => {
      results.push(errno);
      if (results.length === 5) device.write = store;
    };
    serve(all, [write, closeOther, close, close, fsync, fsync, write, close], look);
    expect(results).toEqual([0, 0, ENOSPC, ENOSPC, ENOSPC, 0, 0, 0]);
    expect(session.log).toEqual(['disk: no space']);
    device.write = () => {
      throw new Qcow2Error('HOST', 'no space', { cause });
    };
    results.length = 0;
    serve(all, [write, write, fsync], (errno) => results.push(errno));
    expect(results).toEqual([0, ENOSPC, 0]);
  });
});

describe('files that show the same bytes', () => {
  it('need nothing dropped while the kernel has pages of one of them only', () => {
    const { session, inode, jobs } = setting();
    session.read(inode.disk, 0, 4096);
    for (let i = 0; i < 9; i++) expect(session.write(inode.disk, i, bytes('x')).errno).toBe(0);
    session.write(inode.first, 0, bytes('x'), { isDirect: true });
    jobs.length = 0;
    session.write(inode.disk, 0, bytes('x'));
    expect(jobs).toEqual([]);
  });

  it('have their pages dropped before the write is answered', () => {
    const { session, inode, jobs, done } = setting();
    session.read(inode.disk, 0, 4096);
    session.read(inode.top, 0, 4096);
    const reply = session.write(inode.first, 0, bytes('new'));
    expect(reply.errno).toBe(DEFERRED);
    expect(jobs).toHaveLength(1);
    expect(jobs[0]!.inodes.sort()).toEqual([inode.disk, inode.top].sort());
    const sent = Buffer.from(jobs[0]!.reply!);
    expect([sent.readUInt32LE(0), sent.readInt32LE(4), sent.readBigUInt64LE(8)]).toEqual([
      24,
      0,
      reply.unique,
    ]);
    expect(sent.readUInt32LE(16)).toBe(3);
    done[0] = 1;
    // Nobody has read them since.
    expect(session.write(inode.first, 0, bytes('newer')).errno).toBe(0);
    session.read(inode.disk, 0, 4096);
    expect(session.write(inode.first, 0, bytes('newest')).errno).toBe(DEFERRED);
    expect(jobs[1]!.inodes).toEqual([inode.disk]);
  });

  it('that show other bytes are left alone', () => {
    const { session, inode, jobs } = setting();
    session.read(inode.second, 0, 4096);
    session.read(inode.note, 0, 4096);
    expect(session.write(inode.first, 0, bytes('x'), { isDirect: true }).errno).toBe(0);
    expect(session.write(inode.disk, BYTES / 2 - 1, bytes('x')).errno).toBe(0);
    expect(jobs).toEqual([]);
    expect(session.write(inode.disk, BYTES / 2 - 1, bytes('xx')).errno).toBe(DEFERRED);
  });

  it('a write waits for pages that an earlier one has dropped, until they are', () => {
    const { session, inode, jobs, done } = setting();
    session.read(inode.disk, 0, 4096);
    session.write(inode.first, 0, bytes('one'));
    expect(session.write(inode.first, 0, bytes('two')).errno).toBe(DEFERRED);
    expect(jobs.map(({ inodes }) => inodes)).toEqual([[inode.disk], []]);
    done[0] = 2;
    expect(session.write(inode.first, 0, bytes('three')).errno).toBe(0);
  });

  it('no reply stands behind a job that waits for it', () => {
    const { session, inode, jobs, done } = setting();
    session.read(inode.disk, 0, 4096);
    session.read(inode.first, 0, 4096);
    // Drops pages of `disk`; whoever writes to `disk` holds some of them until it is answered.
    expect(session.write(inode.first, 0, bytes('x')).errno).toBe(DEFERRED);
    session.read(inode.first, 0, 4096);
    expect(session.write(inode.disk, 0, bytes('x')).errno).toBe(0);
    // What it made stale is dropped all the same.
    expect(jobs.at(-1)).toEqual({ inodes: [inode.first] });
    done[0] = jobs.length;
    session.read(inode.first, 0, 4096);
    expect(session.write(inode.disk, 0, bytes('x')).errno).toBe(DEFERRED);
  });

  it('pages that the kernel writes of its own accord wait for nobody', () => {
    const { session, inode, jobs } = setting();
    session.read(inode.disk, 0, 4096);
    expect(session.write(inode.first, 0, bytes('x'), { isFromCache: true }).errno).toBe(0);
    expect(jobs).toEqual([{ inodes: [inode.disk] }]);
  });

  it('are not cached where everything goes past the cache', () => {
    const { session, inode, jobs } = setting({ directIo: true });
    session.read(inode.disk, 0, 4096);
    expect(session.write(inode.first, 0, bytes('x')).errno).toBe(0);
    expect(jobs).toEqual([]);
  });

  it('holes and failed writes have pages dropped too', () => {
    const { session, inode, jobs, device } = setting();
    session.read(inode.disk, 0, 4096);
    const punch = () => session.allocate(inode.first, PUNCH | KEEP_SIZE, 0, 4096);
    expect(punch).toThrow(/was not answered/);
    expect(jobs).toHaveLength(1);
    session.read(inode.disk, 0, 4096);
    device.write = () => {
      throw new Qcow2Error('HOST', 'cannot write');
    };
    expect(session.write(inode.first, 0, bytes('x')).errno).toBe(DEFERRED);
    expect(Buffer.from(jobs.at(-1)!.reply!).readInt32LE(4)).toBe(-EIO);
  });
});

describe('FALLOCATE', () => {
  it('makes holes and zeroes exactly where they are wanted', () => {
    const { session, device, inode } = setting();
    for (const mode of [PUNCH | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE]) {
      device.bytes.fill(9);
      expect(session.allocate(inode.second, mode, 10, 100).errno).toBe(0);
      const zeroes = [...device.bytes.keys()].filter((at) => device.bytes[at] === 0);
      expect([zeroes.length, zeroes[0]]).toEqual([100, BYTES / 2 + 10]);
    }
  });

  it('accepts space that is there, and refuses what would make the file longer', () => {
    const { session, device, inode } = setting();
    device.bytes.fill(9);
    expect(session.allocate(inode.disk, 0, 0, BYTES).errno).toBe(0);
    expect(session.allocate(inode.disk, KEEP_SIZE, 0, 2 * BYTES).errno).toBe(0);
    expect(session.allocate(inode.disk, 0, 1, BYTES).errno).toBe(ENOSPC);
    expect(session.allocate(inode.disk, ZERO, 1, BYTES).errno).toBe(ENOSPC);
    expect(session.allocate(inode.disk, PUNCH | KEEP_SIZE, BYTES, 5).errno).toBe(0);
    expect(device.bytes.every((byte) => byte === 9)).toBe(true);
    expect(session.allocate(inode.first, PUNCH | KEEP_SIZE, 1, 2n ** 62n).errno).toBe(0);
    expect(device.bytes[BYTES / 2]).toBe(9);
  });

  it.each([0x04, 0x08, 0x20, 0x40, PUNCH | ZERO])('does not know mode %i', (mode) => {
    const { session, inode } = setting();
    expect(session.allocate(inode.disk, mode, 0, 4096).errno).toBe(EOPNOTSUPP);
  });

  it('is refused by what can only be read', () => {
    const { session, inode } = setting();
    expect(session.allocate(inode.top, PUNCH | KEEP_SIZE, 0, 4096).errno).toBe(EROFS);
  });
});

describe('SETATTR', () => {
  const set = (
    { session }: Setting,
    inode: number,
    values: { valid: number; size?: number; mtime?: number; mode?: number; uid?: number },
  ) => {
    const body = Buffer.alloc(88);
    body.writeUInt32LE(values.valid, 0);
    body.writeBigUInt64LE(BigInt(values.size ?? 0), 16);
    body.writeBigUInt64LE(BigInt(values.mtime ?? 0), 40);
    body.writeUInt32LE(values.mode ?? 0, 68);
    body.writeUInt32LE(values.uid ?? 0, 76);
    return session.ask(4, inode, body);
  };

  it('refuses every other size: a truncated disk is a lost one', () => {
    const all = setting();
    for (const size of [0, 5, BYTES - 1, BYTES + 1]) {
      expect(set(all, all.inode.disk, { valid: 8, size }).errno).toBe(EPERM);
    }
    const { errno, payload } = set(all, all.inode.disk, { valid: 8, size: BYTES });
    expect([errno, payload.readBigUInt64LE(24)]).toEqual([0, BigInt(BYTES)]);
    expect(set(all, all.inode.first, { valid: 8, size: BYTES }).errno).toBe(EPERM);
  });

  it('sets times, and leaves mode and owner as they are', () => {
    const all = setting();
    const { payload } = set(all, all.inode.disk, { valid: 1 << 5, mtime: 1234 });
    expect(payload.readBigUInt64LE(16 + 32)).toBe(1234n);
    expect(set(all, all.inode.disk, { valid: 1 << 4 }).errno).toBe(0);
    expect(set(all, all.inode.disk, { valid: 1, mode: 0o100644 }).errno).toBe(0);
    expect(set(all, all.inode.disk, { valid: 1, mode: 0o100600 }).errno).toBe(EPERM);
    expect(set(all, all.inode.disk, { valid: 2, uid: 1000 }).errno).toBe(0);
    expect(set(all, all.inode.disk, { valid: 2, uid: 0 }).errno).toBe(EPERM);
  });
});

describe('what is written', () => {
  it('is flushed by FSYNC through any file of the disk, and its failure is told', () => {
    const { session, device, disk, inode } = setting();
    let flushes = 0;
    device.flush = () => void flushes++;
    session.write(inode.first, 0, bytes('x'));
    expect(disk.isUnflushed).toBe(true);
    expect(session.ask(20, inode.disk, Buffer.alloc(16)).errno).toBe(0);
    expect([flushes, disk.isUnflushed]).toEqual([1, false]);
    expect(session.ask(20, inode.note, Buffer.alloc(16)).errno).toBe(0);
    expect(flushes).toBe(1);
    device.flush = () => {
      throw new Qcow2Error('HOST', 'cannot flush');
    };
    session.write(inode.first, 0, bytes('x'));
    for (let i = 0; i < 2; i++) {
      expect(session.ask(20, inode.disk, Buffer.alloc(16)).errno).toBe(EIO);
    }
    expect(disk.isUnflushed).toBe(true);
  });

  it('is flushed without being asked when there is nothing else to do', () => {
    const { session, device, disk, inode } = setting();
    let flushes = 0;
    device.flush = () => void flushes++;
    session.write(inode.disk, 0, bytes('x'));
    const answers = [-1, 0];
    const timeouts: (number | undefined)[] = [];
    session.session.serve({
      receive: (_buffer, timeoutMs) => {
        timeouts.push(timeoutMs);
        return answers.shift()!;
      },
      send: () => undefined,
    });
    expect([flushes, disk.isUnflushed]).toEqual([1, false]);
    expect(timeouts).toEqual([3000, undefined]);
  });

  it('shows in the times, and in texts about it for whoever opens them from then on', () => {
    const { session, disk, inode } = setting();
    const text = session.find('text');
    const open = (): { handle: bigint; flags: number } => {
      const { payload } = session.open(text);
      return { handle: payload.readBigUInt64LE(0), flags: payload.readUInt32LE(8) };
    };
    const read = (handle: bigint): string => {
      const body = Buffer.alloc(40);
      body.writeBigUInt64LE(handle, 0);
      body.writeUInt32LE(4096, 16);
      return session.ask(15, text, body).payload.toString();
    };
    const first = open();
    expect(first.flags).toBe(1);
    const before = Date.now();
    session.write(inode.disk, 0, bytes('x'));
    expect(disk.modifiedMs).toBeGreaterThanOrEqual(before);
    const second = open();
    expect(read(first.handle)).toBe('changed 0 times');
    expect(read(second.handle)).toBe('changed 1 times');
    // An opener that was given up, or none: the present state.
    expect(read(999n)).toBe('changed 1 times');
    const body = Buffer.alloc(24);
    body.writeBigUInt64LE(first.handle, 0);
    expect(session.ask(18, text, body).errno).toBe(0);
    expect(read(first.handle)).toBe('changed 1 times');
  });
});

describe('OPEN', () => {
  it('for writing is for files that accept it, whoever asks', () => {
    const { session, inode } = setting();
    expect(session.open(inode.disk, O_RDWR)).toMatchObject({ errno: 0 });
    expect(session.open(inode.disk, O_RDWR).payload.readUInt32LE(8)).toBe(2);
    expect(session.open(inode.top, O_RDWR).errno).toBe(EROFS);
    expect(session.open(inode.note, 1).errno).toBe(EROFS);
    expect(session.open(inode.note, 0).errno).toBe(0);
  });

  it('is not spared, and the modes say who may write', () => {
    const { session, inode } = setting();
    expect(session.init().payload.readUInt32LE(12) & (1 << 17)).toBe(0);
    expect(session.init().payload.readUInt32LE(12) & (1 << 5)).toBe(1 << 5);
    // Not the writeback cache: with it the size would be the kernel's.
    expect(session.init().payload.readUInt32LE(12) & (1 << 16)).toBe(0);
    const mode = (node: number) => session.ask(3, node, Buffer.alloc(16)).payload.readUInt32LE(76);
    expect(mode(inode.disk).toString(8)).toBe('100644');
    expect(mode(inode.top).toString(8)).toBe('100444');
    expect(mode(session.find('folder')).toString(8)).toBe('40555');
  });

  it('names can be neither made nor removed nor changed', () => {
    const { session } = setting();
    for (const opcode of [6, 8, 9, 10, 11, 12, 13, 35, 45, 51]) {
      expect(session.ask(opcode, 1, Buffer.alloc(200)).errno).toBe(EPERM);
    }
  });
});
