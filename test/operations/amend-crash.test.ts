/** Power cuts while an image is amended: it is the old one or the new one, and reads as it did. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { ChainedQcow2Image, Image } from '../../src/chain/open.ts';
import type { HostFile } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { amendImage, amendSteps } from '../../src/operations/amend.ts';
import type { AmendOptions } from '../../src/operations/amend.ts';
import { checkImage } from '../../src/operations/check.ts';
import { repairMetadata } from '../../src/qcow2/check/repair.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { CrashStates } from '../support/crash-states.ts';
import { FaultFile, FaultPlan } from '../support/fault-file.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import { temporaryDirectory } from '../support/temp.ts';

const SEED = Number(process.env.QCOW2_CRASH_SEED ?? Date.now() % 1_000_000);
/** Torn states that are tried at each operation of the log. */
const TORN = Number(process.env.QCOW2_CRASH_TORN ?? 2);
/** QEMU judges so many states of each log. */
const ASKED = 3;
const BACKING_BYTES = 150 * 1024;

/** What an image holds, and what is behind it. */
interface Subject {
  bytes: Uint8Array;
  backing: GrowableMemoryDevice | undefined;
}

/** Has QEMU make an image of 200 KiB with zero clusters of all kinds, and snapshots that share them. */
function makeImage(layout: string, parts: string): Subject {
  const has = (part: string): boolean => parts.split(' ').includes(part);
  const directory = temporaryDirectory();
  const path = join(directory, 'top.qcow2');
  const content = Buffer.alloc(BACKING_BYTES, 9);
  // A name so long that the header is in several sectors.
  const base = join(directory, has('long') ? `${'b'.repeat(180)}.raw` : 'base.raw');
  writeFileSync(base, content);
  const backing = has('backing') ? ['-b', base, '-F', 'raw'] : [];
  qemuImg('create', '-q', '-f', 'qcow2', '-o', layout, ...backing, path, '200k');
  const snapshot = (name: string): void => {
    if (has('snapshots')) qemuImg('snapshot', '-c', name, path);
  };
  const zeroes = layout.includes('compat=0.10')
    ? ['write -q -P 6 20k 8k']
    : ['write -q -z 20k 24k', 'write -q -z -u 72k 16k', 'write -q -z -u 160k 8k'];
  qemuIo(path, ['write -q -P 1 10k 60k', 'write -q -P 2 120k 30k']);
  snapshot('one');
  qemuIo(path, zeroes);
  snapshot('two');
  qemuIo(path, ['write -q -P 3 28k 8k', 'write -q -P 4 170k 30k']);
  if (has('bitmaps')) {
    qemuImg('bitmap', '--add', '-g', '512', path, 'one');
    qemuImg('bitmap', '--add', '--disable', path, 'two');
    qemuIo(path, ['write -q -P 5 100k 3k']);
  }
  return {
    bytes: readFileSync(path),
    backing: has('backing') ? new GrowableMemoryDevice(content) : undefined,
  };
}

function open(file: HostFile, { backing }: Subject, writable = false): ChainedQcow2Image {
  return new Qcow2Image<Image>({
    path: 'image',
    file,
    header: readHeader(file),
    backing: backing as unknown as Image | undefined,
    writable,
  });
}

/** What the disk and all snapshots read as. */
function contentOf(image: ChainedQcow2Image): Map<string, Buffer> {
  const read = (disk: { size: number; read(target: Buffer, offset: number): void }): Buffer => {
    const bytes = Buffer.alloc(disk.size);
    disk.read(bytes, 0);
    return bytes;
  };
  const contents = new Map([['disk', read(image)]]);
  for (const { id } of image.snapshots) contents.set(id, read(image.openSnapshot(id)));
  return contents;
}

/** The properties that are amended. */
function propertiesOf({ header }: ChainedQcow2Image): string {
  const { version, refcountOrder, hasLazyRefcounts, size, extensions } = header;
  const { externalDataFile, bitmaps } = extensions;
  return JSON.stringify({
    ...{ version, refcountOrder, hasLazyRefcounts, size, externalDataFile },
    bitmapCount: bitmaps?.count ?? 0,
  });
}

/** Expects a crashed image to be valid but for leaks, and to read as it did; its properties. */
function judge(bytes: Uint8Array, subject: Subject, before: Map<string, Buffer>): string {
  const file = new GrowableMemoryDevice(bytes);
  if (readHeader(file).isDirty) {
    repairMetadata({ header: readHeader(file), file, path: 'image' }, { fix: 'all' });
  }
  const image = open(file, subject);
  const contents = contentOf(image);
  for (const [name, content] of before) {
    const now = contents.get(name)!;
    const common = Math.min(now.length, content.length);
    expect(now.subarray(0, common).equals(content.subarray(0, common)), name).toBe(true);
    expect(now.subarray(common).every((byte) => byte === 0)).toBe(true);
  }
  const { corruptions = 0, 'check-errors': errors } = checkImage(image);
  expect({ corruptions, errors }).toEqual({ corruptions: 0, errors: 0 });
  return propertiesOf(image);
}

/** Expects QEMU to find nothing wrong with an image but leaks. */
function judgeWithQemu(bytes: Uint8Array): void {
  const path = join(temporaryDirectory(), 'crashed.qcow2');
  writeFileSync(path, bytes);
  const args = ['check', '-r', 'leaks', '-f', 'qcow2', path];
  const { exitCode, stdout, stderr } = tryRun('qemu-img', args);
  expect(exitCode, stdout + stderr).toBe(0);
}

/** Amends a subject and tries power cuts everywhere; the properties that images were met with. */
function amendWithCrashes(subject: Subject, options: AmendOptions): Set<string> {
  const log: LoggedOperation[] = [];
  const image = open(new RecordingFile(subject.bytes, log), subject, true);
  const before = contentOf(image);
  const seen = new Set([propertiesOf(image)]);
  amendImage(image, options);
  image.flush();
  image.close();
  const random = new Random(SEED);
  const states = new CrashStates(log, [subject.bytes]);
  const asked = new Set(Array.from({ length: ASKED }, () => random.below(log.length + 1)));
  for (let position = 0; position <= log.length; position++) {
    states.advanceTo(position);
    const crashed = [states.complete()[0]!.slice()];
    for (let round = 0; round < TORN; round++) crashed.push(states.torn(random)[0]!.slice());
    for (const bytes of crashed) {
      if (asked.has(position)) judgeWithQemu(bytes);
      seen.add(judge(bytes, subject, before));
    }
  }
  // In the end nothing leaks, and amending what is amended changes nothing.
  const final = new GrowableMemoryDevice(states.complete()[0]);
  const { leaks = 0 } = checkImage(open(final, subject));
  expect(leaks).toBe(0);
  amendImage(open(final, subject, true), options);
  expect(judge(final.bytes, subject, before)).toBe([...seen].at(-1));
  return seen;
}

const CASES: [layout: string, parts: string, options: AmendOptions][] = [
  ['cluster_size=512', '', { compat: '0.10' }],
  ['cluster_size=2k', 'snapshots', { compat: '0.10' }],
  ['cluster_size=4k', 'backing', { compat: '0.10' }],
  ['cluster_size=2k', 'backing snapshots', { compat: '0.10' }],
  ['cluster_size=1k', 'bitmaps snapshots', { compat: '0.10' }],
  ['cluster_size=1k,lazy_refcounts=on', 'backing long', { compat: '0.10' }],
  ['cluster_size=1k,refcount_bits=64', 'backing bitmaps', { compat: '0.10', refcountBits: 16 }],
  ['cluster_size=4k,lazy_refcounts=on', 'snapshots bitmaps', { lazyRefcounts: false }],
  ['cluster_size=4k', 'bitmaps', { lazyRefcounts: true }],
  ['cluster_size=512', '', { refcountBits: 1 }],
  ['cluster_size=512', 'snapshots', { refcountBits: 64 }],
  ['cluster_size=1k,refcount_bits=1', '', { refcountBits: 32, lazyRefcounts: true }],
  ['cluster_size=512,refcount_bits=64', 'snapshots bitmaps', { refcountBits: 2 }],
  ['cluster_size=16k,extended_l2=on', 'backing', { refcountBits: 8 }],
  ['compat=0.10,cluster_size=1k', 'snapshots', { compat: '1.1', refcountBits: 4 }],
  ['compat=0.10,cluster_size=1k', 'backing long', { compat: '1.1', lazyRefcounts: true }],
];

const SIZED: typeof CASES = [
  ['cluster_size=1k', 'backing', { compat: '0.10', size: 230 * 1024 }],
  ['compat=0.10,cluster_size=2k', 'snapshots', { compat: '1.1', size: 230 * 1024 }],
];

describePeers(['qemu-img', 'qemu-io'], `power cuts while amending, from seed ${SEED}`, () => {
  it.each(CASES)(
    '%s, %s: %j',
    (layout, parts, options) => {
      // Both the old header and the new one were met, and nothing in between.
      expect(amendWithCrashes(makeImage(layout, parts), options).size).toBe(2);
    },
    60_000,
  );

  it.each(SIZED)(
    'the size is another instant: %s, %s: %j',
    (layout, parts, options) => {
      expect(amendWithCrashes(makeImage(layout, parts), options).size).toBe(3);
    },
    60_000,
  );

  it('rows of the snapshot table without extra data get it', () => {
    const subject = makeImage('compat=0.10,cluster_size=1k', 'snapshots');
    const bytes = Buffer.from(subject.bytes);
    const table = bytes.readUInt32BE(68);
    for (let row = table, count = 0; count < 2; count++) {
      const [extra, texts] = [bytes.readUInt32BE(row + 36), 3 + bytes.readUInt16BE(row + 12)];
      const next = row + Math.ceil((40 + extra + texts) / 8) * 8;
      // The row and what follows it moves up over the extra data, as far as padding lets it.
      const rest = bytes.subarray(next, table + 1024);
      bytes.copyWithin(row + 40, row + 40 + extra, row + 40 + extra + texts);
      bytes.writeUInt32BE(0, row + 36);
      row += Math.ceil((40 + texts) / 8) * 8;
      bytes.set(Uint8Array.from(rest), row);
    }
    const short = { ...subject, bytes };
    const rows = open(new GrowableMemoryDevice(bytes), short).snapshots;
    expect(rows.map(({ name, length }) => [name, length])).toEqual([
      ['one', 44],
      ['two', 44],
    ]);
    expect(amendWithCrashes(short, { compat: '1.1' }).size).toBe(2);
  }, 60_000);

  it('stopped between any two steps, it is the old image, without leaks', () => {
    for (const options of [{ compat: '0.10' }, { refcountBits: 64 }] as const) {
      const subject = makeImage('cluster_size=512', 'snapshots backing');
      for (let steps = 0; ; steps++) {
        const file = new GrowableMemoryDevice(subject.bytes);
        const image = open(file, subject, true);
        const [before, properties] = [contentOf(image), propertiesOf(image)];
        const running = amendSteps(image, options);
        let isDone = false;
        for (let step = 0; step <= steps && !isDone; step++) isDone = running.next().done === true;
        running.return();
        image.close();
        const after = judge(file.bytes, subject, before);
        expect(checkImage(open(file, subject)).leaks ?? 0).toBe(0);
        expect(after === properties).toBe(!isDone);
        if (isDone) break;
      }
    }
  });

  it.each<[layout: string, parts: string, options: AmendOptions]>([
    ['cluster_size=2k', 'backing snapshots', { compat: '0.10' }],
    ['cluster_size=1k', 'bitmaps long backing', { compat: '0.10' }],
    ['cluster_size=512', 'snapshots', { refcountBits: 64, lazyRefcounts: true }],
    ['compat=0.10,cluster_size=1k', 'snapshots', { compat: '1.1', refcountBits: 8 }],
  ])(
    'a write or flush that fails: %s, %s: %j',
    (layout, parts, options) => {
      const subject = makeImage(layout, parts);
      for (const kind of ['EIO', 'short', 'full'] as const) {
        for (let index = 0; ; index++) {
          const plan = new FaultPlan({ target: 'change', index, kind });
          const memory = new GrowableMemoryDevice(subject.bytes);
          const image = open(new FaultFile(memory, plan), subject, true);
          const before = contentOf(image);
          let hasFailed = false;
          try {
            amendImage(image, options);
          } catch (error) {
            expect(error).toMatchObject({ code: 'HOST' });
            hasFailed = true;
          }
          judge(memory.bytes, subject, before);
          plan.makeRoom();
          // Whatever goes on being written keeps it valid.
          try {
            image.write(before.get('disk')!, 0);
            image.close();
          } catch (error) {
            expect(error).toMatchObject({ code: 'HOST' });
            image.abandon();
          }
          judge(memory.bytes, subject, before);
          if (!hasFailed && plan.failures === 0) break;
        }
      }
    },
    60_000,
  );
});
