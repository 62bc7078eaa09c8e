/**
 * Reads damaged images of the corpus: no crash, no hang, no hunger, no error without a place, and
 * no other data than QEMU reads.
 *
 *     QCOW2_FUZZ_SEED=7 QCOW2_FUZZ_CASES=100000 npx vitest run test/fuzz
 *
 * A complaint names the image and the case's own seed, from which it can be made again.
 */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { judgeConduct, qemuReading } from '../bad-input/judge.ts';
import { ReaderProcess } from '../bad-input/reader-process.ts';
import { corpusImages, unpackImage } from '../images/corpus.ts';
import type { CorpusImage } from '../images/corpus.ts';
import { hasPeer } from '../support/peers.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { corrupt, tellingOffsets } from './corrupt.ts';

const SEED = Number(process.env.QCOW2_FUZZ_SEED ?? 1);
const CASES = Number(process.env.QCOW2_FUZZ_CASES ?? 1500);
/** QEMU is asked of every nth image that could be read. */
const ASK_QEMU_EVERY = 25;
/** Larger images take long to read, and hold nothing that smaller ones do not. */
const MAX_IMAGE_BYTES = 1024 * 1024;

const directory = sharedTemporaryDirectory();
let reader: ReaderProcess;
beforeAll(async () => {
  reader = await ReaderProcess.create();
});
afterAll(() => reader.close());

interface Subject {
  image: CorpusImage;
  path: string;
  bytes: Buffer;
  offsets: number[];
}

function subjects(): Subject[] {
  return corpusImages()
    .filter(({ name }) => !name.startsWith('demo') && !name.startsWith('damage/backing'))
    .map((image) => {
      const path = unpackImage(image, join(directory, image.name));
      const bytes = readFileSync(path);
      return { image, path, bytes, offsets: tellingOffsets(bytes) };
    })
    .filter(({ bytes, offsets }) => bytes.length <= MAX_IMAGE_BYTES && offsets.length > 0);
}

/** Reads one damaged image; returns what was wrong. */
async function fuzzOnce({ image, path, bytes, offsets }: Subject, seed: number): Promise<string[]> {
  const damaged = corrupt(bytes, offsets, seed);
  writeFileSync(path, damaged.bytes);
  const outcome = await reader.read(path);
  const complaints = judgeConduct(outcome);
  const disk = 'parts' in outcome ? outcome.parts.find(({ part }) => part === 'disk') : undefined;
  if (disk?.sha256 !== undefined && seed % ASK_QEMU_EVERY === 0 && hasPeer('qemu-img')) {
    const qemu = qemuReading(path, disk);
    // Where QEMU refuses, it may be for a table that the disk's data does not need.
    if (qemu !== undefined && qemu !== disk.sha256 && !qemu.startsWith('refused')) {
      complaints.push('QEMU reads other data');
    }
  }
  const where = `${image.name}, seed ${seed} (${damaged.changes.join(', ')})`;
  return complaints.map((complaint) => `${where}: ${complaint}`);
}

describe('reading damaged images', () => {
  it(`conducts itself in ${CASES} cases from seed ${SEED}`, { timeout: CASES * 1000 }, async () => {
    const all = subjects();
    const complaints: string[] = [];
    for (let index = 0; index < CASES; index++) {
      complaints.push(...(await fuzzOnce(all[index % all.length]!, SEED * 1_000_003 + index)));
    }
    expect(complaints).toEqual([]);
  });
});
