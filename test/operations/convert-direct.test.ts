import { truncateSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { expect, test } from 'vitest';
import type { HostRange } from '../../src/device/block-device.ts';
import { FileDevice } from '../../src/device/file.ts';
import { ChunkPreparer } from '../../src/operations/convert-chunk.ts';
import type { ChunkRequest, ChunkSpec } from '../../src/operations/convert-chunk.ts';
import { DirectChunks } from '../../src/operations/convert-direct.ts';
import type { Chunk, ChunkSource } from '../../src/operations/convert.ts';
import { makeRaw } from './scratch.ts';

const CHUNK = 64 * 1024;
const COUNT = 20;
const spec: ChunkSpec = {
  chunkBytes: CHUNK,
  sparse: { blockBytes: 4096, minimumZeroBytes: 4096 },
  compression: undefined,
  salvage: false,
};
const requests = Array.from({ length: COUNT }, (_, index) => {
  return { offset: index * CHUNK, length: CHUNK - (index === COUNT - 1 ? 512 : 0) };
});

/** A file of which every third chunk is in several pieces. */
class PiecewiseFile extends FileDevice {
  override hostRange(offset: number, length: number): HostRange | undefined {
    return (offset / CHUNK) % 3 === 1 ? undefined : super.hostRange(offset, length);
  }
}

/** Prepares chunks like any other source, and counts them. */
class OtherChunks implements ChunkSource {
  readonly depth = 8;
  count = 0;
  readonly #preparer: ChunkPreparer;

  constructor(device: FileDevice) {
    this.#preparer = new ChunkPreparer(device, spec);
  }

  fetch(request: ChunkRequest): Promise<Chunk> {
    this.count++;
    const bytes = new Uint8Array(CHUNK);
    const prepared = this.#preparer.prepare(request, bytes, undefined);
    return Promise.resolve({ ...prepared, bytes, compressed: undefined, release: () => undefined });
  }
}

/** All of the chunks one behind the other, with as many under way as may be. */
async function readAll(chunks: ChunkSource): Promise<Buffer> {
  const parts: Buffer[] = [];
  const queue: { length: number; chunk: Chunk | Promise<Chunk> }[] = [];
  const takeFirst = async (): Promise<void> => {
    const { length, chunk } = queue.shift()!;
    const ready = await chunk;
    parts.push(Buffer.from(ready.bytes.subarray(0, length)));
    ready.release();
  };
  for (const request of requests) {
    if (queue.length >= chunks.depth) await takeFirst();
    queue.push({ length: request.length, chunk: chunks.fetch(request) });
  }
  while (queue.length > 0) await takeFirst();
  return Buffer.concat(parts);
}

test.each([true, false])('chunks in several pieces come from elsewhere: %s', async (hasOthers) => {
  const content = randomBytes(COUNT * CHUNK - 512);
  using source = new PiecewiseFile(makeRaw('pieces.raw', content.length, [[0, content]]));
  const others = new OtherChunks(source);
  const open = (): ChunkSource => others;
  const chunks = new DirectChunks({
    source,
    spec,
    others: hasOthers ? { depth: 8, open } : undefined,
  });
  expect((await readAll(chunks)).equals(content)).toBe(true);
  expect(others.count).toBe(hasOthers ? 7 : 0);
});

test('what a chunk holds besides zeroes is found', async () => {
  const path = makeRaw('sparse.raw', CHUNK, [[8192, randomBytes(4096).fill(1)]]);
  using source = new FileDevice(path);
  const chunks = new DirectChunks({ source, spec });
  expect((await chunks.fetch({ offset: 0, length: CHUNK })).runs).toEqual([8192, 12_288]);
});

test('a file that has become shorter is an error of the chunk that it does not have', async () => {
  const path = makeRaw('short.raw', 3 * CHUNK, [[0, randomBytes(3 * CHUNK)]]);
  using source = new FileDevice(path);
  truncateSync(path, 2 * CHUNK - 512);
  const at = (index: number): ChunkRequest => ({ offset: index * CHUNK, length: CHUNK });
  const chunks = new DirectChunks({ source, spec });
  const [first, second] = [0, 1].map((index) => chunks.fetch(at(index)));
  expect((await first!).runs).toEqual([0, CHUNK]);
  await expect(second).rejects.toMatchObject({ code: 'TRUNCATED' });

  const salvaging = new DirectChunks({ source, spec: { ...spec, salvage: true } });
  const salvaged = await salvaging.fetch(at(1));
  expect(salvaged.unreadable).toMatchObject([{ offset: 2 * CHUNK - 512, length: 512 }]);
  expect(salvaged.bytes.subarray(CHUNK - 512).every((byte) => byte === 0)).toBe(true);
});
