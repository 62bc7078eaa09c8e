/** Power cuts while an overlay is committed or rebased: it reads as it did before, at any instant. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { ChainedQcow2Image, Image } from '../../src/chain/open.ts';
import { RawImage } from '../../src/chain/raw-image.ts';
import type { HostFile } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { checkImage } from '../../src/operations/check.ts';
import { commitImage } from '../../src/operations/commit.ts';
import { rebaseImage } from '../../src/operations/rebase.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { CrashStates } from '../support/crash-states.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import { temporaryDirectory } from '../support/temp.ts';

const SEED = Number(process.env.QCOW2_CRASH_SEED ?? Date.now() % 1_000_000);
/** Torn states that are tried at each operation of the log. */
const TORN = 3;

const LAYOUTS = [
  'cluster_size=512',
  'cluster_size=4k,refcount_bits=64',
  'cluster_size=16k,extended_l2=on',
  'compat=0.10,cluster_size=1k',
];

function open(file: HostFile, backing: Image | undefined, writable = false): ChainedQcow2Image {
  return new Qcow2Image<Image>({
    path: 'image',
    file,
    header: readHeader(file),
    backing,
    writable,
  });
}

function contentOf(image: ChainedQcow2Image): Buffer {
  const content = Buffer.alloc(image.size);
  image.read(content, 0);
  return content;
}

/** Nothing may be wrong but for clusters that are counted and not used. */
function expectValid(image: ChainedQcow2Image): void {
  const { corruptions = 0, 'check-errors': errors } = checkImage(image);
  expect({ corruptions, errors }).toEqual({ corruptions: 0, errors: 0 });
}

/** Calls `judge` with what power cuts at every operation of a log may leave. */
function eachCrash(
  { log, initial }: { log: LoggedOperation[]; initial: Uint8Array[] },
  judge: (files: GrowableMemoryDevice[]) => void,
): void {
  const random = new Random(SEED);
  const states = new CrashStates(log, initial);
  expect(log.length).toBeGreaterThan(5);
  for (let position = 0; position <= log.length; position++) {
    states.advanceTo(position);
    judge(states.complete().map((bytes) => new GrowableMemoryDevice(bytes)));
    for (let round = 0; round < TORN; round++) {
      judge(states.torn(random).map((bytes) => new GrowableMemoryDevice(bytes)));
    }
  }
}

describePeers(['qemu-img', 'qemu-io'], `power cuts, from seed ${SEED}`, () => {
  it.each(LAYOUTS.map((layout) => [layout]))(
    'while committing: %s',
    (layout) => {
      const directory = temporaryDirectory();
      const [base, top] = [join(directory, 'base.qcow2'), join(directory, 'top.qcow2')];
      const options = ['-q', '-f', 'qcow2', '-o', layout];
      qemuImg('create', ...options, base, '180k');
      qemuIo(base, ['write -q -P 1 0 100k', 'write -q -P 2 150k 20k']);
      qemuImg('create', ...options, '-b', base, '-F', 'qcow2', top, '200k');
      qemuIo(top, ['write -q -P 3 30k 40k', 'write -q -z 8k 16k', 'write -q -P 4 170k 29k']);
      const initial = [readFileSync(top), readFileSync(base)];
      const log: LoggedOperation[] = [];
      const files = initial.map((bytes, index) => new RecordingFile(bytes, log, index));
      const image = open(files[0]!, open(files[1]!, undefined, true), true);
      const before = contentOf(image);
      commitImage(image);
      expect(contentOf(image).equals(before)).toBe(true);
      image.close();
      eachCrash({ log, initial }, ([topFile, baseFile]) => {
        const below = open(baseFile!, undefined);
        const above = open(topFile!, below);
        expect(contentOf(above).equals(before)).toBe(true);
        expectValid(above);
        expectValid(below);
      });
    },
    60_000,
  );

  it.each(LAYOUTS.map((layout) => [layout]))(
    'while rebasing: %s',
    (layout) => {
      const directory = temporaryDirectory();
      const path = (name: string) => join(directory, name);
      for (const [name, pattern] of Object.entries({ old: 1, new: 2 })) {
        qemuImg('create', '-q', '-f', 'raw', path(name), `${150 + 20 * pattern}k`);
        qemuIo(path(name), [`write -q -P ${pattern} 20k 90k`, 'write -q -P 3 0 20k'], 'raw');
      }
      const options = ['-q', '-f', 'qcow2', '-o', layout, '-b', path('old'), '-F', 'raw'];
      qemuImg('create', ...options, path('top'), '200k');
      qemuIo(path('top'), ['write -q -P 5 30k 40k', 'write -q -z 8k 8k']);
      using old = new RawImage(path('old'));
      using fresh = new RawImage(path('new'));
      for (const target of [
        { file: 'new', format: 'raw', backing: fresh },
        { file: null, format: null, backing: undefined },
      ]) {
        const initial = [readFileSync(path('top'))];
        const log: LoggedOperation[] = [];
        const image = open(new RecordingFile(initial[0]!, log), old, true);
        const before = contentOf(image);
        rebaseImage(image, target);
        expect(contentOf(image).equals(before)).toBe(true);
        image.flush();
        const seen = new Set<string | undefined>();
        eachCrash({ log, initial }, ([file]) => {
          const { backingFile } = readHeader(file!);
          seen.add(backingFile);
          const backing =
            backingFile === path('old') ? old : backingFile === 'new' ? fresh : undefined;
          const after = open(file!, backing);
          expect(contentOf(after).equals(before)).toBe(true);
          expectValid(after);
        });
        // Both the old header and the new one were met.
        expect(seen).toEqual(new Set([path('old'), target.file ?? undefined]));
      }
    },
    60_000,
  );
});
