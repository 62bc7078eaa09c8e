import { describe, expect, it } from 'vitest';
import type { Extent } from '../../../src/device/block-device.ts';
import { ReadOnlyDevice } from '../../../src/device/block-device.ts';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { MAX_READ_BYTES } from '../../../src/export/fuse/session.ts';
import { LimitedSources, TextSource } from '../../../src/export/fuse/sources.ts';
import { directoryOf, fileOf, requestBytes, TestSession, textFile } from './wire.ts';

const EIO = 5;
const ENOENT = 2;
const ENXIO = 6;
const ENOTDIR = 20;
const EISDIR = 21;
const EINVAL = 22;
const EROFS = 30;
const ENOSYS = 38;
const EPROTO = 71;

/** Every byte tells its offset. */
function pattern(length: number): MemoryDevice {
  return new MemoryDevice(Buffer.from(Array.from({ length }, (_, index) => (index * 31) % 251)));
}

describe('INIT', () => {
  it('agrees on the older minor version and on flags that both sides know', () => {
    const { errno, payload } = new TestSession([]).init();
    expect(errno).toBe(0);
    expect(payload).toHaveLength(64);
    expect(payload.readUInt32LE(0)).toBe(7);
    expect(payload.readUInt32LE(4)).toBe(31);
    const flags = payload.readUInt32LE(12);
    // ASYNC_READ, EXPORT_SUPPORT, DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO, NO_OPEN_SUPPORT,
    // PARALLEL_DIROPS, MAX_PAGES, CACHE_SYMLINKS, NO_OPENDIR_SUPPORT; nothing about writing.
    expect([0, 4, 13, 14, 15, 17, 18, 22, 23, 24].reduce((bits, bit) => bits + 2 ** bit, 0)).toBe(
      flags,
    );
    expect(payload.readUInt16LE(28)).toBe(256);
  });

  it('takes no flag that the kernel does not offer', () => {
    const { payload } = new TestSession([]).init(1, 27);
    expect(payload.readUInt32LE(4)).toBe(27);
    expect(payload.readUInt32LE(12)).toBe(1);
  });

  it('refuses a kernel that is too old, and says so in the log', () => {
    const session = new TestSession([]);
    expect(session.init(1, 12).errno).toBe(EPROTO);
    expect(session.log).toEqual(["INIT: the kernel's FUSE 7.12 is too old"]);
  });
});

describe('LOOKUP and GETATTR', () => {
  const session = new TestSession([
    textFile('file', 'hello'),
    directoryOf('folder', [textFile('inner', 'x')]),
  ]);

  it('tell size, mode, owner and time', () => {
    const inode = session.find('file');
    const { payload } = session.ask(3, inode, Buffer.alloc(16));
    expect(payload).toHaveLength(104);
    const attr = payload.subarray(16);
    expect(attr.readBigUInt64LE(0)).toBe(BigInt(inode));
    expect(attr.readBigUInt64LE(8)).toBe(5n);
    expect(attr.readBigUInt64LE(16)).toBe(1n);
    expect(attr.readBigUInt64LE(32)).toBe(1_700_000_000n);
    expect(attr.readUInt32LE(52)).toBe(123_000_000);
    expect(attr.readUInt32LE(60).toString(8)).toBe('100444');
    expect(attr.readUInt32LE(64)).toBe(1);
    expect([attr.readUInt32LE(68), attr.readUInt32LE(72)]).toEqual([1000, 1001]);
  });

  it('give the directory search permission', () => {
    const { payload } = session.ask(3, 1, Buffer.alloc(16));
    expect(payload.readUInt32LE(76).toString(8)).toBe('40555');
  });

  it('answer a name that is missing so that the kernel remembers it', () => {
    const { errno, payload } = session.ask(1, 1, Buffer.from('nothing\0'));
    expect(errno).toBe(0);
    expect(payload.readBigUInt64LE(0)).toBe(0n);
    expect(payload.readBigUInt64LE(16)).toBeGreaterThan(86_400n);
  });

  it('know . and ..', () => {
    const folder = session.find('folder');
    expect(session.find('folder', '.')).toBe(folder);
    expect(session.find('folder', '..')).toBe(1);
    expect(session.find('..')).toBe(1);
  });

  it('give a node the same number each time', () => {
    expect(session.find('folder', 'inner')).toBe(session.find('folder', 'inner'));
  });

  it('refuse what is not a directory, not a node, not a name', () => {
    const file = session.find('file');
    expect(session.ask(1, file, Buffer.from('x\0')).errno).toBe(ENOTDIR);
    expect(session.ask(1, 999, Buffer.from('x\0')).errno).toBe(ENOENT);
    expect(session.ask(1, 1, Buffer.from('without end')).errno).toBe(EINVAL);
    expect(session.ask(3, 999, Buffer.alloc(16)).errno).toBe(ENOENT);
  });
});

describe('READ', () => {
  const device = pattern(10_000);
  const session = new TestSession([fileOf('file', device), directoryOf('folder', [])]);
  const inode = session.find('file');

  it('returns the bytes asked for', () => {
    const { errno, payload } = session.read(inode, 4096, 4096);
    expect(errno).toBe(0);
    expect(payload.equals(Buffer.from(device.bytes.subarray(4096, 8192)))).toBe(true);
  });

  it('stops at the end of the file', () => {
    expect(session.read(inode, 8192, 4096).payload).toHaveLength(10_000 - 8192);
    expect(session.read(inode, 10_000, 4096).payload).toHaveLength(0);
    expect(session.read(inode, 2n ** 63n, 4096).payload).toHaveLength(0);
    expect(session.read(inode, 2n ** 64n - 1n, 4096)).toMatchObject({ errno: 0 });
  });

  it('serves a megabyte and refuses more', () => {
    const big = new TestSession([fileOf('file', new NullDevice(4 * MAX_READ_BYTES))]);
    const file = big.find('file');
    expect(big.read(file, 0, MAX_READ_BYTES).payload).toHaveLength(MAX_READ_BYTES);
    expect(big.read(file, 0, MAX_READ_BYTES + 1).errno).toBe(EINVAL);
    expect(big.read(file, 0, 0xffff_ffff).errno).toBe(EINVAL);
  });

  it('refuses directories and unknown nodes', () => {
    expect(session.read(1, 0, 4096).errno).toBe(EISDIR);
    expect(session.read(4711, 0, 4096).errno).toBe(ENOENT);
  });

  it('shows a part of a device as a file of its own', () => {
    const part = new TestSession([
      {
        kind: 'file',
        name: 'part',
        source: { device: () => device, isOpen: true },
        range: { offset: 1000, length: 500 },
      },
    ]);
    const { payload } = part.read(part.find('part'), 100, 4096);
    expect(payload.equals(Buffer.from(device.bytes.subarray(1100, 1500)))).toBe(true);
  });
});

/** Fails wherever it is read below `limit`. */
class BrokenDevice extends ReadOnlyDevice {
  readonly size = 1024 * 1024;
  readonly error: Error;

  constructor(error: Error) {
    super();
    this.error = error;
  }

  override read(target: Uint8Array, offset: number): void {
    if (offset < 4096) throw this.error;
    target.fill(7);
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    if (offset < 4096) throw this.error;
    yield { offset, length, kind: 'data', zero: false, present: true, depth: 0 };
  }

  override close(): void {
    // Holds nothing.
  }
}

describe('a device that fails', () => {
  it('gives the reader EIO, the log one line, and the next reader its bytes', () => {
    const error = new Qcow2Error('CORRUPT', 'it is reserved', { structure: 'L2 entry 3' });
    const session = new TestSession([fileOf('disk.raw', new BrokenDevice(error))]);
    const inode = session.find('disk.raw');
    for (let count = 0; count < 5; count++) expect(session.read(inode, 0, 4096).errno).toBe(EIO);
    expect(session.seek(inode, 0, 3).errno).toBe(EIO);
    expect(session.log[0]).toBe('disk.raw: L2 entry 3: it is reserved');
    expect(session.log.filter((line) => line.startsWith('disk.raw'))).toHaveLength(1);
    expect(session.read(inode, 8192, 4096).payload[0]).toBe(7);
  });

  it.each([
    ['OUT_OF_RANGE', EINVAL],
    ['READ_ONLY', EROFS],
    ['TRUNCATED', EIO],
    ['HOST', EIO],
  ] as const)('tells %s as error %i', (code, errno) => {
    const session = new TestSession([fileOf('f', new BrokenDevice(new Qcow2Error(code, 'no')))]);
    expect(session.read(session.find('f'), 0, 512).errno).toBe(errno);
  });

  it('logs no more than a hundred different lines', () => {
    let count = 0;
    const device = new BrokenDevice(new Error());
    Object.defineProperty(device, 'error', { get: () => new Error(`cluster ${count++}`) });
    const session = new TestSession([fileOf('f', device)]);
    const inode = session.find('f');
    for (let i = 0; i < 1000; i++) session.read(inode, 0, 512);
    expect(session.log).toHaveLength(101);
    expect(session.log.at(-1)).toBe('further errors are not logged');
  });

  it('whose size cannot be told fails alone', () => {
    const session = new TestSession([
      {
        kind: 'file',
        name: 'bad',
        source: new LimitedSources().source(() => {
          throw new Qcow2Error('CORRUPT', 'no L1 table');
        }),
      },
      textFile('good', 'x'),
    ]);
    expect(session.ask(1, 1, Buffer.from('bad\0')).errno).toBe(EIO);
    expect(session.list(1, { plus: true }).map(({ name }) => name)).toContain('bad');
    expect(session.read(session.find('good'), 0, 10).payload.toString()).toBe('x');
  });
});

describe('READDIR and READDIRPLUS', () => {
  const names = Array.from({ length: 1000 }, (_, index) => `${index}-${'é'.repeat(index % 120)}`);
  const session = new TestSession([
    directoryOf(
      'many',
      names.map((name) => textFile(name, name)),
    ),
  ]);
  const many = session.find('many');

  for (const plus of [false, true]) {
    const what = plus ? 'READDIRPLUS' : 'READDIR';
    it(`${what} lists everything once, in order, whatever the size of the requests`, () => {
      for (const size of [512, 4096, 100_000, 0xffff_ffff]) {
        const listed = session.list(many, { size, plus });
        expect(listed.map(({ name }) => name)).toEqual(['.', '..', ...names]);
      }
    });
  }

  it('tells types and inode numbers', () => {
    const [dot, dotDot, first] = session.list(many);
    expect(dot).toMatchObject({ inode: BigInt(many), type: 4 });
    expect(dotDot).toMatchObject({ inode: 1n, type: 4 });
    expect(first).toMatchObject({ inode: BigInt(session.find('many', names[0]!)), type: 8 });
  });

  it('does not make a text or open a snapshot for a listing', () => {
    let made = 0;
    const lazy = new TestSession([
      {
        kind: 'file',
        name: 'map.json',
        source: new TextSource(() => {
          made++;
          return ['[', ']\n'];
        }),
      },
    ]);
    const [, , before] = lazy.list(1, { plus: true });
    expect(before).toMatchObject({ name: 'map.json', attributesOf: 0n });
    expect(made).toBe(0);
    const inode = lazy.find('map.json');
    expect(lazy.read(inode, 0, 100).payload.toString()).toBe('[]\n');
    expect(made).toBe(1);
    const [, , after] = lazy.list(1, { plus: true });
    expect(after).toMatchObject({ attributesOf: BigInt(inode) });
  });

  it('refuses files, and ends at positions that do not exist', () => {
    const file = session.find('many', names[0]!);
    expect(session.ask(28, file, Buffer.alloc(40)).errno).toBe(ENOTDIR);
    const body = Buffer.alloc(40);
    body.writeBigUInt64LE(2n ** 64n - 1n, 8);
    body.writeUInt32LE(4096, 16);
    expect(session.ask(28, many, body)).toMatchObject({ errno: 0, payload: Buffer.alloc(0) });
  });
});

describe('LSEEK', () => {
  const DATA = 3;
  const HOLE = 4;

  /** 0-99 hole, 100-199 data, 200-299 zero, 300-399 data. */
  class SparseDevice extends ReadOnlyDevice {
    readonly size = 400;
    override read(target: Uint8Array): void {
      target.fill(0);
    }
    override *extents(offset: number, length: number): Generator<Extent> {
      const kinds = ['hole', 'data', 'zero', 'compressed'] as const;
      for (const [index, kind] of kinds.entries()) {
        const start = Math.max(offset, index * 100);
        const end = Math.min(offset + length, index * 100 + 100);
        const zero = kind === 'hole' || kind === 'zero';
        const rest = { kind, zero, present: kind !== 'hole', depth: 0 };
        if (start < end) yield { offset: start, length: end - start, ...rest };
      }
    }
    override close(): void {
      // Holds nothing.
    }
  }
  const session = new TestSession([
    fileOf('file', new SparseDevice()),
    {
      kind: 'file',
      name: 'part',
      source: { device: () => new SparseDevice(), isOpen: true },
      range: { offset: 150, length: 200 },
    },
    fileOf('empty', new NullDevice(1000)),
  ]);

  it.each([
    ['file', 0, DATA, 100],
    ['file', 0, HOLE, 0],
    ['file', 150, DATA, 150],
    ['file', 150, HOLE, 200],
    ['file', 250, DATA, 300],
    ['file', 399, HOLE, 400],
    ['part', 0, DATA, 0],
    ['part', 0, HOLE, 50],
    ['part', 60, DATA, 150],
    ['part', 160, HOLE, 200],
    ['empty', 5, HOLE, 5],
  ])('in %s from %i with whence %i finds %i', (name, offset, whence, found) => {
    const { errno, payload } = session.seek(session.find(name), offset, whence);
    expect(errno).toBe(0);
    expect(payload.readBigUInt64LE(0)).toBe(BigInt(found));
  });

  it.each([
    ['empty', 0, DATA, ENXIO],
    ['file', 400, HOLE, ENXIO],
    ['file', 400, DATA, ENXIO],
    ['file', 2n ** 63n, DATA, ENXIO],
    ['file', 0, 0, EINVAL],
    ['file', 0, 99, EINVAL],
  ])('in %s from %i with whence %i fails with %i', (name, offset, whence, errno) => {
    expect(session.seek(session.find(name), offset, whence).errno).toBe(errno);
  });
});

describe('other requests', () => {
  it.each([4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51])(
    'request %i, which writes, is refused',
    (opcode) => {
      const session = new TestSession([textFile('f', 'x')]);
      expect(session.ask(opcode, 1, Buffer.alloc(200)).errno).toBe(EROFS);
    },
  );

  it.each([20, 22, 23, 25, 30, 34, 36, 37, 39, 40, 50, 52, 999, 0, 0xffff_ffff])(
    'request %i is not known here',
    (opcode) => {
      const session = new TestSession([]);
      expect(session.ask(opcode, 1, Buffer.alloc(64)).errno).toBe(ENOSYS);
    },
  );

  it('FORGET and BATCH_FORGET have no reply', () => {
    const session = new TestSession([]);
    for (const opcode of [2, 42]) {
      expect(session.raw(requestBytes({ opcode, nodeId: 1 }, Buffer.alloc(16)))).toBeUndefined();
    }
  });

  it('OPEN is spared where the kernel can do without, and keeps the cache where not', () => {
    const session = new TestSession([textFile('f', 'x')]);
    session.init();
    const inode = session.find('f');
    expect(session.ask(14, inode, Buffer.alloc(8)).errno).toBe(ENOSYS);
    expect(session.ask(27, 1, Buffer.alloc(8)).errno).toBe(ENOSYS);
    session.init(1);
    expect(session.ask(14, inode, Buffer.alloc(8)).payload.readUInt32LE(8)).toBe(2);
    expect(session.ask(27, 1, Buffer.alloc(8)).payload.readUInt32LE(8)).toBe(10);
    for (const opcode of [18, 29, 38]) {
      expect(session.ask(opcode, 1, Buffer.alloc(24)).errno).toBe(0);
    }
  });

  it('OPEN is answered where reads go past the cache of the kernel', () => {
    const session = new TestSession([textFile('f', 'x')], { directIo: true });
    expect(session.init().payload.readUInt32LE(12) & (1 << 17)).toBe(0);
    const inode = session.find('f');
    expect(session.ask(14, inode, Buffer.alloc(8)).payload.readUInt32LE(8)).toBe(1);
    expect(session.ask(27, 1, Buffer.alloc(8)).errno).toBe(ENOSYS);
  });

  it('STATFS tells a full filesystem of the size of the disk', () => {
    const { payload } = new TestSession([]).ask(17, 1);
    expect(payload).toHaveLength(80);
    expect(payload.readBigUInt64LE(0)).toBe(256n);
    expect(payload.readBigUInt64LE(8)).toBe(0n);
    expect(payload.readUInt32LE(40)).toBe(4096);
    expect(payload.readUInt32LE(44)).toBe(255);
  });
});
