import { randomBytes } from 'node:crypto';
import {
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { MemoryDevice, NullDevice } from '../../src/device/memory.ts';
import { Qcow2Error } from '../../src/errors.ts';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { ConcatenatedDevice } from '../../src/operations/concatenated.ts';
import { convertSteps } from '../../src/operations/convert.ts';
import { chunkBytesFor, RawTarget, sparseSpec } from '../../src/operations/convert-raw.ts';
import { OutputFile } from '../../src/operations/output-file.ts';
import type { OutputFileOptions } from '../../src/operations/output-file.ts';
import { makeRaw, MiB, qemu, run, scratch } from './scratch.ts';
import type { Piece } from './scratch.ts';
import { describePeers } from '../support/peers.ts';

const noise = randomBytes(300 * 1024);

interface RawOptions {
  sparseBytes?: number;
  outputIsZero?: boolean;
}

interface Conversion extends RawOptions {
  mode?: OutputFileOptions['mode'];
}

/** Copies devices to an output. @returns how far it was after each step, in bytes */
async function convertToRaw(
  devices: readonly BlockDevice[],
  output: OutputFile,
  { sparseBytes = 4096, outputIsZero = output.isEmpty }: RawOptions = {},
): Promise<number[]> {
  const source = new ConcatenatedDevice(devices);
  const target = new RawTarget(output, { total: source.size, sparseBytes, outputIsZero });
  const chunkBytes = chunkBytesFor(sparseBytes, 2 * MiB);
  const sparse = sparseSpec(sparseBytes);
  const spec = { chunkBytes, sparse, compression: undefined, salvage: false };
  const seen: number[] = [];
  for await (const { done } of convertSteps(source, target, { spec })) seen.push(done);
  return seen;
}

/** Converts raw files with this package. */
async function convert(
  sources: string[],
  target: string,
  { mode = 'create', ...options }: Conversion = {},
) {
  const devices = sources.map((path) => new FileDevice(path));
  const { size } = new ConcatenatedDevice(devices);
  const output = new OutputFile(target, { size, mode, inputs: sources });
  await convertToRaw(devices, output, options);
  output.finish({ flush: false });
  for (const device of devices) device.close();
}

/** Converts with both, and expects the same bytes in about the same space. */
async function expectAsQemu(
  sources: string[],
  options: Conversion & { flags?: string[]; slackBytes?: number } = {},
): Promise<string> {
  const { flags = [], slackBytes = 0, ...conversion } = options;
  const [ours, theirs] = [scratch('ours.raw'), scratch('theirs.raw')];
  if (options.mode !== 'existing') for (const path of [ours, theirs]) rmSync(path, { force: true });
  await convert(sources, ours, conversion);
  qemu('qemu-img', 'convert', ...flags, '-f', 'raw', '-O', 'raw', ...sources, theirs);
  expect(run('cmp', [ours, theirs])).toEqual({ status: 0, stdout: '', stderr: '' });
  const [ourBlocks, theirBlocks] = [statSync(ours).blocks, statSync(theirs).blocks];
  // A block or two of the filesystem's own, and 2 %.
  const tolerance = 32 + theirBlocks * 0.02 + slackBytes / 512;
  expect(Math.abs(ourBlocks - theirBlocks)).toBeLessThanOrEqual(tolerance);
  return ours;
}

describePeers(['qemu-img', 'cmp'], 'as qemu-img convert -O raw', () => {
  const sparse: Piece[] = [
    [0, noise],
    [3 * MiB + 100, noise.subarray(0, 10)],
    [5 * MiB, Buffer.alloc(MiB)],
    [7 * MiB - 300 * 1024, noise],
  ];

  test('a sparse file', async () => {
    const source = makeRaw('source.raw', 8 * MiB, sparse);
    const output = await expectAsQemu([source]);
    expect(statSync(output).blocks * 512).toBeLessThan(MiB);
  });

  test.each([0, 1, 511, 512, 513, 1000, 4095, MiB + 1])('a file of %i bytes', async (size) => {
    const source = makeRaw(
      'source.raw',
      size,
      size === 0 ? [] : [[size - 1, noise.subarray(0, 1)]],
    );
    expect(statSync(await expectAsQemu([source])).size).toBe(Math.ceil(size / 512) * 512);
  });

  test.each([512, 1024, 4096, 8192, 65536, 1536, 1048576, 2 * MiB + 512, 16 * MiB])(
    'holes of %i bytes',
    async (sparseBytes) => {
      const source = makeRaw('source.raw', 8 * MiB, [
        ...sparse,
        [MiB, Buffer.alloc(700 * 1024)],
        [MiB + 8192, noise.subarray(0, 512)],
        [MiB + 12288, noise.subarray(0, 512)],
        [MiB + 100 * 1024, noise.subarray(0, 4096)],
      ]);
      const output = await expectAsQemu([source], {
        sparseBytes,
        flags: ['-S', String(sparseBytes)],
      });
      expect(readFileSync(output).equals(readFileSync(source))).toBe(true);
    },
  );

  test('-S 0 allocates everything', async () => {
    const source = makeRaw('source.raw', 8 * MiB, sparse);
    const output = await expectAsQemu([source], { sparseBytes: 0, flags: ['-S', '0'] });
    expect(statSync(output).blocks * 512).toBeGreaterThanOrEqual(8 * MiB);
  });

  test('several sources one behind the other, at odd sizes', async () => {
    const first = makeRaw('first.raw', 1000, [[0, noise.subarray(0, 1000)]]);
    const second = makeRaw('second.raw', 3 * MiB + 5000, [[2 * MiB + 77, noise]]);
    const third = makeRaw('third.raw', 5 * MiB, [[1, noise]]);
    const output = await expectAsQemu([first, second, third]);
    expect(statSync(output).size).toBe(1024 + 3 * MiB + 5120 + 5 * MiB);
  });

  test.each([{}, { sparseBytes: 0 }])('-n into an existing file, with %o', async (options) => {
    const source = makeRaw('source.raw', 4 * MiB, sparse.slice(0, 2));
    const old = randomBytes(5 * MiB);
    for (const name of ['ours.raw', 'theirs.raw']) makeRaw(name, 5 * MiB, [[0, old]]);
    const flags = ['-n', ...('sparseBytes' in options ? ['-S', '0'] : [])];
    const output = readFileSync(
      await expectAsQemu([source], { mode: 'existing', flags, ...options }),
    );
    expect(output.subarray(4 * MiB).equals(old.subarray(4 * MiB))).toBe(true);
  });

  test('an existing file is truncated', async () => {
    const source = makeRaw('source.raw', 4 * MiB, sparse.slice(0, 2));
    const target = makeRaw('old.raw', 8 * MiB, [[0, randomBytes(8 * MiB)]]);
    await convert([source], target);
    expect(readFileSync(target).equals(readFileSync(source))).toBe(true);
    expect(statSync(target).blocks * 512).toBeLessThan(MiB);
  });

  test('random layouts', async () => {
    const piece = fc.tuple(
      fc.nat(4 * MiB),
      fc.constantFrom(noise, Buffer.alloc(200 * 1024), noise.subarray(0, 3000), Buffer.from([1])),
    );
    const layout = fc.array(piece, { maxLength: 6 });
    const sparseBytes = fc.constantFrom(512, 4096, 65536);
    await fc.assert(
      fc.asyncProperty(
        layout,
        fc.integer({ min: 5 * MiB, max: 6 * MiB }),
        sparseBytes,
        async (pieces, size, bytes) => {
          await expectAsQemu([makeRaw('source.raw', size, pieces)], {
            sparseBytes: bytes,
            flags: ['-S', String(bytes)],
            // The programs cut what they look at for zeroes in other places, so that beside a piece
            // of data one can keep zeroes that are just too few for a hole to the other.
            slackBytes: pieces.length * (8192 + bytes),
          });
        },
      ),
      { numRuns: 30 },
    );
  });
});

test('an output that cannot free space has its zeroes written', async () => {
  const old = randomBytes(3 * MiB);
  const target = makeRaw('old.raw', 3 * MiB, [[0, old]]);
  const source = Buffer.alloc(2 * MiB);
  source.set(noise.subarray(0, 5000), MiB + 700);
  const sources = [new MemoryDevice(source), new NullDevice(MiB / 2)];
  const output = new OutputFile(target, { size: 2.5 * MiB, mode: 'existing', inputs: [] });
  output.tryZero = () => false;
  await convertToRaw(sources, output);
  output.finish({ flush: true });
  const expected = Buffer.concat([source, Buffer.alloc(MiB / 2), old.subarray(2.5 * MiB)]);
  expect(readFileSync(target).equals(expected)).toBe(true);
});

test('an output that is known to be zero is not touched where the source is zero', async () => {
  const target = makeRaw('old.raw', 2 * MiB, [[MiB, noise.subarray(0, 4096)]]);
  const output = new OutputFile(target, { size: MiB, mode: 'existing', inputs: [] });
  await convertToRaw([new NullDevice(MiB)], output, { outputIsZero: true });
  output.finish({ flush: false });
  expect(statSync(target).blocks).toBeLessThan(64);
  expect(
    readFileSync(target)
      .subarray(MiB, MiB + 4096)
      .equals(noise.subarray(0, 4096)),
  ).toBe(true);
});

test('progress goes up to the whole', async () => {
  const target = scratch('progress.raw');
  const sources = [new NullDevice(MiB), new MemoryDevice(new Uint8Array(4 * MiB))];
  const output = new OutputFile(target, { size: 5 * MiB, mode: 'create', inputs: [] });
  const seen = (await convertToRaw(sources, output)).map((done) => done / MiB);
  output.finish({ flush: false });
  expect(seen).toEqual([1, 2, 4, 5]);
});

describe('OutputFile', () => {
  const options = { size: 4096, mode: 'create', inputs: [] } as const;

  test.each(['the same path', 'a hard link', 'a symbolic link'])('refuses an input: %s', (way) => {
    const input = makeRaw('input.raw', MiB, [[0, noise]]);
    const alias = scratch('alias.raw');
    rmSync(alias, { force: true });
    if (way === 'a hard link') linkSync(input, alias);
    if (way === 'a symbolic link') symlinkSync(input, alias);
    const path = way === 'the same path' ? input : alias;
    const problem =
      way === 'the same path'
        ? 'the output is also an input'
        : `the output is the same file as ${input}`;
    for (const mode of ['create', 'existing'] as const) {
      expect(() => new OutputFile(path, { size: 0, mode, inputs: [input] })).toThrow(
        `${path}: ${problem}; nothing was written`,
      );
    }
    expect(readFileSync(input).subarray(0, noise.length).equals(noise)).toBe(true);
  });

  test('abandoned, a new file is removed and an old one is not', () => {
    const path = scratch('abandoned.raw');
    rmSync(path, { force: true });
    expect(new OutputFile(path, options).abandon()).toBe('removed');
    expect(existsSync(path)).toBe(false);
    makeRaw('abandoned.raw', 10);
    expect(new OutputFile(path, options).abandon()).toBe('kept');
    expect(existsSync(path)).toBe(true);
  });

  test('a file that is too small', () => {
    const path = makeRaw('small.raw', 4095);
    expect(() => new OutputFile(path, { ...options, mode: 'existing' })).toThrow(
      `${path}: the output has 4095 bytes, fewer than the 4096 of the input`,
    );
    expect(statSync(path).size).toBe(4095);
  });

  test('what cannot be opened', () => {
    const missing = scratch('missing.raw');
    expect(() => new OutputFile(missing, { ...options, mode: 'existing' })).toThrow(
      `${missing}: cannot open for writing: no such file or directory`,
    );
    const folder = scratch('folder');
    mkdirSync(folder);
    expect(() => new OutputFile(folder, options)).toThrow(`${folder}: cannot open for writing`);
    expect(() => new OutputFile('/dev/null', options)).toThrow(
      '/dev/null: the output is neither a file nor a block device',
    );
  });

  test('a size that the filesystem does not allow leaves no file', () => {
    const path = scratch('huge.raw');
    expect(() => new OutputFile(path, { ...options, size: Number.MAX_SAFE_INTEGER })).toThrow(
      `${path}: cannot make the file 9007199254740991 bytes long`,
    );
    expect(existsSync(path)).toBe(false);
  });
});

test('a source that cannot be read is an error', async () => {
  const source = new MemoryDevice(new Uint8Array(MiB));
  source.read = () => {
    throw new Qcow2Error('CORRUPT', 'it is broken');
  };
  const output = new OutputFile(scratch('broken.raw'), { size: MiB, mode: 'create', inputs: [] });
  await expect(convertToRaw([source], output)).rejects.toThrow('it is broken');
  expect(output.abandon()).toBe('removed');
});
