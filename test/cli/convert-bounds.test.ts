/**
 * What a conversion may take at most: memory, whatever the images and the number of threads, and
 * time for disks that hold next to nothing.
 *
 * Time is the processor's, since the machine may be busy with other things.
 */

import { closeSync, ftruncateSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { MiB, scratch } from '../operations/scratch.ts';
import { CLI_PATH } from '../support/cli.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, tryRun } from '../support/qemu.ts';

const TiB = 2 ** 40;
const MAX_MEMORY = 300 * MiB;
const MAX_SECONDS = 2;
const CORES = 16;

interface Usage {
  /** Most bytes that were resident. */
  peak: number;
  /** Of all threads, in user code and in the kernel. */
  seconds: number;
}

/** Converts as on a machine with many cores. */
function convert(args: readonly string[]): Usage {
  const [preload, report] = [scratch('usage.cjs'), scratch('usage.json')];
  // Not the maximum that getrusage(2) tells: that begins with the memory of the parent.
  writeFileSync(
    preload,
    `const fs = require('node:fs');
    require('node:os').availableParallelism = () => ${CORES};
    require('node:module').syncBuiltinESMExports();
    process.on('exit', () => {
      const peak = /VmHWM:\\s+(\\d+) kB/.exec(fs.readFileSync('/proc/self/status', 'latin1'))[1];
      const { user, system } = process.cpuUsage();
      const usage = { peak: peak * 1024, seconds: (user + system) / 1e6 };
      fs.writeFileSync(${JSON.stringify(report)}, JSON.stringify(usage));
    });`,
  );
  const command = ['-r', preload, CLI_PATH, 'convert', '-m', String(CORES), '-W', ...args];
  expect(tryRun(process.execPath, command)).toMatchObject({ exitCode: 0, stderr: '' });
  return JSON.parse(readFileSync(report, 'utf8')) as Usage;
}

/** A disk of text, no two clusters alike. */
function makeText(name: string, size: number): string {
  const path = scratch(name);
  const page = Buffer.from('all work and no play makes for a compressible page; '.repeat(79));
  const bytes = Buffer.alloc(size);
  for (let at = 0; at < size; at += 4096) {
    page.copy(bytes, at);
    bytes.writeDoubleLE(Math.sin(at), at);
  }
  writeFileSync(path, bytes);
  return path;
}

describePeers(['qemu-img'], 'memory stays in bounds', () => {
  const raw = makeText('text.raw', 160 * MiB);
  const output = scratch('memory.out');

  test.each([
    '-O qcow2',
    '-O raw -S 16M',
    '-O qcow2 -c',
    '-O qcow2 -c -o cluster_size=2M,compression_type=zstd',
  ])('with %s', (options) => {
    const { peak } = convert(['-f', 'raw', ...options.split(' '), raw, output]);
    expect(peak).toBeLessThan(MAX_MEMORY);
  });

  test.each(['4k', '16M'])('of compressed clusters, with zeroes of %s left out', (zeroes) => {
    const compressed = scratch('text.qcow2');
    qemuImg('convert', '-c', '-m', '8', '-W', '-O', 'qcow2', raw, compressed);
    const { peak } = convert(['-O', 'raw', '-S', zeroes, compressed, output]);
    expect(peak).toBeLessThan(MAX_MEMORY);
  });
});

describe('1 TiB', () => {
  function makeSparse(): string {
    const path = scratch('huge.raw');
    const descriptor = openSync(path, 'w');
    ftruncateSync(descriptor, TiB);
    closeSync(descriptor);
    return path;
  }

  function makeQcow2(preallocation: string): string {
    const path = scratch(`huge-${preallocation}.qcow2`);
    qemuImg('create', '-f', 'qcow2', '-o', `preallocation=${preallocation}`, path, String(TiB));
    return path;
  }

  const outputs = ['-O raw', '-O qcow2', '-O qcow2 -c'];
  const sources = [
    { name: 'sparse raw', format: 'raw', make: makeSparse },
    { name: 'empty qcow2', format: 'qcow2', make: () => makeQcow2('off') },
    { name: 'preallocated qcow2', format: 'qcow2', make: () => makeQcow2('metadata') },
  ];

  describePeers(['qemu-img'], 'of nothing', () => {
    test.each(sources)('$name takes little time and memory', ({ format, make }) => {
      const source = make();
      for (const options of outputs) {
        const usage = convert(['-f', format, ...options.split(' '), source, scratch('huge.out')]);
        expect(usage.seconds, options).toBeLessThan(MAX_SECONDS);
        expect(usage.peak, options).toBeLessThan(MAX_MEMORY);
      }
    });
  });
});
