/** Random requests to the files of an image, held against a model; then QEMU looks at the image. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../../src/chain/open.ts';
import { openSource } from '../../../src/export/fuse/file-tree.ts';
import type { TreeEntry } from '../../../src/export/fuse/file-tree.ts';
import { WritableDisk } from '../../../src/export/fuse/writable-disk.ts';
import { createImage } from '../../../src/operations/create.ts';
import type { CreateOptions } from '../../../src/operations/create.ts';
import { describePeers } from '../../support/peers.ts';
import { qemuImg, qemuIo } from '../../support/qemu.ts';
import { Random } from '../../support/random.ts';
import { temporaryDirectoryPerTest } from '../../support/temp.ts';
import { TestSession } from './wire.ts';

const KiB = 1024;
/** Not a multiple of the cluster size. */
const BYTES = 3 * 1024 * KiB + 512;
const PART = { offset: 1000 * KiB, length: 1500 * KiB };
const OPERATIONS = 600;
const [KEEP_SIZE, PUNCH, ZERO] = [1, 2, 16];
const ENOSPC = 28;

const directory = temporaryDirectoryPerTest();

/** A session over an image, and what its disk should hold. */
class Subject {
  readonly #random: Random;
  readonly #session: TestSession;
  readonly #model: Buffer;
  readonly #files: readonly { inode: number; offset: number; length: number }[];

  constructor(seed: number, disk: WritableDisk, model: Buffer) {
    this.#random = new Random(seed);
    this.#model = model;
    const source = openSource(disk.device);
    const entries: TreeEntry[] = [
      { kind: 'file', name: 'disk', source, writable: true },
      { kind: 'file', name: 'part', source, writable: true, range: PART },
    ];
    this.#session = new TestSession(entries, {}, disk);
    this.#session.init();
    this.#files = [
      { inode: this.#session.find('disk'), offset: 0, length: BYTES },
      { inode: this.#session.find('part'), ...PART },
    ];
  }

  step(): void {
    const random = this.#random;
    const file = random.pick(this.#files);
    const unit = random.pick([1, 512, 4 * KiB, 64 * KiB]);
    const at = Math.floor(random.below(file.length) / unit) * unit;
    // Past the end too.
    const length = unit * (1 + random.below(Math.ceil((200 * KiB) / unit)));
    const within = Math.min(length, file.length - at);
    const part = this.#model.subarray(file.offset + at, file.offset + at + within);
    const session = this.#session;
    switch (random.below(6)) {
      case 0:
      case 1: {
        const bytes = Buffer.alloc(length, random.next().toString(36));
        const { errno, payload } = session.write(file.inode, at, bytes);
        expect([errno, payload.readUInt32LE(0)]).toEqual([0, within]);
        bytes.copy(part);
        break;
      }
      case 2: {
        expect(session.allocate(file.inode, PUNCH | KEEP_SIZE, at, length).errno).toBe(0);
        part.fill(0);
        break;
      }
      case 3: {
        const { errno } = session.allocate(file.inode, ZERO, at, length);
        expect(errno).toBe(length > within ? ENOSPC : 0);
        if (errno === 0) part.fill(0);
        break;
      }
      case 4:
        expect(session.ask(20, file.inode, Buffer.alloc(16)).errno).toBe(0);
        break;
      default:
        expect(session.read(file.inode, at, length).payload.equals(part)).toBe(true);
    }
  }
}

describePeers(['qemu-img', 'qemu-io'], 'files of an image', () => {
  it.each<[string, number, CreateOptions, boolean]>([
    ['of small clusters', 1, { clusterSize: 4 * KiB }, false],
    ['with subclusters, over a backing file', 2, { extendedL2: true }, true],
    ['of version 2, over a backing file', 3, { compat: '0.10' }, true],
    ['with lazy refcounts', 4, { lazyRefcounts: true }, false],
  ])('%s hold what was written to them', (_, seed, options, hasBacking) => {
    const model = Buffer.alloc(BYTES);
    const backing = join(directory(), 'base.qcow2');
    if (hasBacking) {
      createImage(backing, { size: BYTES });
      qemuIo(backing, [`write -q -P 9 0 ${BYTES}`]);
      model.fill(9);
    }
    const path = join(directory(), 'disk.qcow2');
    const behind = hasBacking ? { backingFile: backing, backingFormat: 'qcow2' } : {};
    createImage(path, { ...options, ...behind, size: BYTES });
    using image = openImage(path, { writable: true });
    const subject = new Subject(seed, new WritableDisk(image, { modifiedMs: 0 }), model);
    for (let count = 0; count < OPERATIONS; count++) subject.step();
    image.close();
    qemuImg('check', '-q', path);
    const expected = join(directory(), 'expected.raw');
    writeFileSync(expected, model);
    qemuImg('compare', '-q', '-f', 'qcow2', '-F', 'raw', path, expected);
  });
});
