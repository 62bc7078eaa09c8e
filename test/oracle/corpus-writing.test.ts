/**
 * Writing to the images of the corpus, with all that QEMU and others have put into them: what is
 * written is there, what was there and is not overwritten stays (snapshots, VM state, unknown
 * extensions and features), and QEMU finds nothing wrong.
 *
 *     QCOW2_CORPUS_SEED=7 npx vitest run test/oracle/corpus-writing
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { checkImage } from '../../src/operations/check.ts';
import { Qcow2Image } from '../../src/qcow2/image.ts';
import { corpusImages, unpackImage } from '../images/corpus.ts';
import type { CorpusImage } from '../images/corpus.ts';
import { DiskModel } from '../support/disk-model.ts';
import { DiskSession } from '../support/disk-session.ts';
import { describeOperation } from '../support/guest-operations.ts';
import { imageVariant } from '../support/image-variants.ts';
import type { ImageVariant } from '../support/image-variants.ts';
import { readAll } from '../support/open-variant.ts';
import { describePeers } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { RandomOperations, WEIGHTS } from '../support/random-operations.ts';
import { requireSame } from '../support/stamps.ts';
import { temporaryDirectory } from '../support/temp.ts';

const SEED = Number(process.env.QCOW2_CORPUS_SEED ?? 20_260);
const OPERATIONS = 30;
/** Larger disks take long to read as often as that. */
const MAX_DISK_BYTES = 16 * 1024 * 1024;
/** What the fields of a header that every program knows take. */
const FIXED_HEADER_BYTES = 104;

function open(path: string, writable: boolean): Qcow2Image {
  const image = openImage(path, { writable, backingFormat: 'raw' });
  if (!(image instanceof Qcow2Image)) throw new Error('it is no qcow2 image');
  return image;
}

/** The sound images that can be written to. */
function subjects(): CorpusImage[] {
  return corpusImages().filter(({ name, sidecar: { expect: known } }) => {
    const size = known.info?.['virtual-size'];
    if (name === 'features/corrupt-bit') return false;
    const isSmall = typeof size === 'number' && size > 0 && size <= MAX_DISK_BYTES;
    return name.startsWith('features/') && isSmall && known.check?.exitCode === 0;
  });
}

function variantOf(name: string, { header, backing, size }: Qcow2Image): ImageVariant {
  return imageVariant(name, {
    size,
    clusterSize: header.clusterSize,
    version: header.version,
    refcountBits: 2 ** header.refcountOrder,
    extendedL2: header.hasExtendedL2,
    dataFile: header.isDataFileRaw ? 'raw' : header.hasExternalDataFile ? 'plain' : 'none',
    backing: backing === undefined ? undefined : { format: 'raw', size: backing.size },
    hasBitmaps: header.extensions.bitmaps !== undefined,
  });
}

/** What nobody may change who does not know it. */
function keptOf(path: string, { header, snapshots }: Qcow2Image) {
  const states = snapshots
    .filter(({ vmStateSize }) => vmStateSize > 0)
    .map(({ offset: _, l1TableOffset: _moved, ...row }) => row);
  const firstCluster = readFileSync(path).subarray(FIXED_HEADER_BYTES, header.clusterSize);
  return {
    // The bitmaps extension says where their directory is.
    extensions: header.extensions.bitmaps === undefined ? firstCluster.toString('hex') : undefined,
    compatibleFeatures: header.compatibleFeatures,
    incompatibleFeatures: header.incompatibleFeatures,
    states,
  };
}

function vmStates(image: Qcow2Image): Map<string, Buffer> {
  const states = new Map<string, Buffer>();
  for (const { id, vmStateSize } of image.snapshots) {
    if (vmStateSize > 0) states.set(id, readAll(image.openSnapshot(id).openVmState()));
  }
  return states;
}

function modelOf(image: Qcow2Image, variant: ImageVariant): DiskModel {
  const snapshots = image.snapshots.map(({ id, name }) => ({
    name,
    disk: readAll(image.openSnapshot(id)),
  }));
  const backing = image.backing === undefined ? undefined : readAll(image.backing);
  return new DiskModel({ ...variant, disk: readAll(image), snapshots, backing });
}

function judge(path: string, model: DiskModel): void {
  using image = open(path, false);
  requireSame('the disk', readAll(image), model.disk);
  image.snapshots.forEach(({ id, name }, index) => {
    const { name: expectedName, disk } = model.snapshots[index]!;
    expect(name).toBe(expectedName);
    requireSame(`snapshot ${name}`, readAll(image.openSnapshot(id)), disk);
  });
  expect(image.snapshots.length).toBe(model.snapshots.length);
  const { corruptions = 0, leaks = 0 } = checkImage(image);
  expect({ corruptions, leaks }).toEqual({ corruptions: 0, leaks: 0 });
  const inDirectory = { cwd: dirname(path) };
  const check = tryRun('qemu-img', ['check', '-f', 'qcow2', basename(path)], inDirectory);
  expect(check.exitCode, check.stderr + check.stdout).toBe(0);
  const expected = `${path}.expected`;
  writeFileSync(expected, model.disk);
  run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', expected, basename(path)], inDirectory);
}

describePeers(['qemu-img'], 'an image of the corpus', () => {
  for (const [index, subject] of subjects().entries()) {
    it(`can be written to, and keeps the rest: ${subject.name}`, { timeout: 60_000 }, () => {
      const path = unpackImage(subject, temporaryDirectory());
      const before = open(path, false);
      const variant = variantOf(subject.name, before);
      const model = modelOf(before, variant);
      const kept = keptOf(path, before);
      const states = vmStates(before);
      before.close();

      const random = new Random(SEED + index);
      const weights = { ...random.pick(WEIGHTS), commit: 0 };
      // Which of them is meant is looked up by id first.
      if (subject.name === 'features/snapshots-same-name') weights.apply = weights.delete = 0;
      const operations = new RandomOperations(variant, random, weights);
      const session = new DiskSession(model, () => open(path, true));
      const script: string[] = [];
      try {
        for (let count = 0; count < OPERATIONS; count++) {
          const operation = operations.next(model);
          script.push(describeOperation(operation));
          session.perform(operation);
        }
        session.close();
        judge(path, model);
      } catch (error) {
        throw new Error(`${String(error)}\n${script.join('\n')}`, { cause: error });
      }
      using after = open(path, false);
      const { states: rows, ...keptAfter } = keptOf(path, after);
      const { states: rowsBefore, ...keptBefore } = kept;
      expect(keptAfter).toEqual(keptBefore);
      for (const row of rows) expect(rowsBefore).toContainEqual(row);
      for (const [id, state] of vmStates(after)) {
        requireSame(`VM state of ${id}`, state, states.get(id)!);
      }
    });
  }
});
