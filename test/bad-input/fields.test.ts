/**
 * Every field of every structure set to what breaks readers, and the file cut at every edge.
 *
 * What may come of it: the right data (what was put in, or what QEMU reads of the same bytes), or
 * one typed error that says where; within a second and 100 MiB, in a process that lives on.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildImage } from '../support/image-builder.ts';
import type { BuildOptions } from '../support/image-builder.ts';
import { hasPeer } from '../support/peers.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { judgeConduct, qemuReading, surprisingParts } from './judge.ts';
import type { KnownContent } from './judge.ts';
import { fieldMutations, truncations } from './mutations.ts';
import type { Mutation } from './mutations.ts';
import { ReaderProcess } from './reader-process.ts';

/** Changes the random values: another number, other tests. */
const SEED = Number(process.env.QCOW2_TEST_SEED ?? 20_240_101);
/** Asking QEMU takes most of the time: it is asked of every nth surprise only. */
const ASK_QEMU_EVERY = Number(process.env.QCOW2_ASK_QEMU_EVERY ?? 8);

const BASE = Buffer.alloc(40_000, 'what the backing file holds ');

const variants: [name: string, options: BuildOptions][] = [
  ['version 3', {}],
  ['version 2', { version: 2 }],
  ['zstd', { compression: 'zstd', withSnapshot: false, withBitmaps: false }],
  ['extended L2', { extendedL2: true, guestClusters: 18, withBitmaps: false }],
  ['backing file', { backing: { name: 'base.raw', format: 'raw' }, withBitmaps: false }],
  ['data file', { dataFile: { name: 'guest.data', raw: false }, withSnapshot: false }],
  ['raw data file', { dataFile: { name: 'guest.data', raw: true }, withSnapshot: false }],
];

const directory = sharedTemporaryDirectory();
const path = join(directory, 'hostile.qcow2');
let reader: ReaderProcess;

beforeAll(async () => {
  reader = await ReaderProcess.create();
});
afterAll(() => reader.close());

/** Runs mutations and returns what was wrong with the outcomes. */
async function judgeAll(mutations: Iterable<Mutation>, known: KnownContent): Promise<string[]> {
  const complaints: string[] = [];
  let surprises = 0;
  for (const { name, bytes } of mutations) {
    writeFileSync(path, bytes);
    const outcome = await reader.read(path);
    complaints.push(...judgeConduct(outcome).map((complaint) => `${name}: ${complaint}`));
    for (const part of surprisingParts(outcome, known)) {
      if (surprises++ % ASK_QEMU_EVERY !== 0 || !hasPeer('qemu-img')) continue;
      const qemu = qemuReading(path, part);
      if (qemu !== undefined && qemu !== part.sha256)
        complaints.push(`${name}: ${part.part}: QEMU: ${qemu}, we read it`);
    }
  }
  return complaints;
}

describe.each(variants)('%s', (_name, options) => {
  const built = buildImage(options);
  const known: KnownContent = {
    disk: withBacking(built.content, options, built),
    snapshot: built.snapshot && withBacking(built.snapshot.content, options, built),
  };

  beforeAll(() => {
    writeFileSync(join(directory, 'base.raw'), BASE);
    writeFileSync(join(directory, 'guest.data'), built.dataFile);
  });

  it('is read right where nothing is wrong', async () => {
    writeFileSync(path, built.bytes);
    const outcome = await reader.read(path);
    expect(judgeConduct(outcome)).toEqual([]);
    expect(surprisingParts(outcome, known)).toEqual([]);
    expect('parts' in outcome && outcome.parts.filter(({ error }) => error)).toEqual([]);
  });

  it('survives every field', { timeout: 120_000 }, async () => {
    expect(await judgeAll(fieldMutations(built, SEED), known)).toEqual([]);
  });

  it('survives being cut at every edge', { timeout: 120_000 }, async () => {
    expect(await judgeAll(truncations(built), known)).toEqual([]);
  });
});

/** The content with the backing file shown where the image has no clusters. */
function withBacking(
  content: Buffer,
  { backing }: BuildOptions,
  { unallocated, clusterSize }: { unallocated: Set<number>; clusterSize: number },
): Buffer {
  if (backing === undefined) return content;
  const combined = Buffer.from(content);
  for (const cluster of unallocated) {
    const start = cluster * clusterSize;
    combined.set(BASE.subarray(start, start + clusterSize), start);
  }
  return combined;
}
