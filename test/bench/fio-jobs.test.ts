/** The fio job files that people are told to point at an image of their own. */

import path from 'node:path';
import { expect, it } from 'vitest';
import { mountBench } from '../cli/mount-support.ts';
import { servers } from '../cli/serve-process.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';

const JOBS = path.join(import.meta.dirname, '../../bench/fio');

interface Report {
  jobs: { jobname: string; error: number; read: { iops: number }; write: { io_bytes: number } }[];
}

/** Checks that every job of the file read something, and that none wrote or failed. */
function expectReads(report: string, names: readonly string[]): void {
  // Its nbd engine says first, in words, what it connected to.
  const { jobs } = JSON.parse(report.slice(report.search(/^\{/m))) as Report;
  expect(jobs.map(({ jobname }) => jobname)).toEqual(names);
  for (const { error, read, write } of jobs) {
    expect(error).toBe(0);
    expect(read.iops).toBeGreaterThan(0);
    expect(write.io_bytes).toBe(0);
  }
}

function fio(job: string, variables: Record<string, string>): string {
  const env = { ...process.env, RUNTIME: '200ms', ...variables };
  return run('fio', ['--output-format=json', path.join(JOBS, job)], { env });
}

describePeers(['fio', 'qemu-img', '/dev/fuse'], 'the fio job files', () => {
  const bench = mountBench();
  const serve = servers(() => bench.path());

  function makeImage(): string {
    const image = bench.path('disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', image, '16M');
    qemuIo(image, ['write -P 7 0 16M']);
    return image;
  }

  it('fuse.fio reads a file of a mount', () => {
    bench.ok('mount', makeImage(), 'tree');
    const names = ['in-order', 'in-order-direct', 'random-1-thread', 'random-4-threads'];
    expectReads(fio('fuse.fio', { FILE: bench.path('tree', 'disk.raw') }), names);
    bench.ok('unmount', 'tree');
  });

  it('nbd.fio reads an export', async () => {
    const { uri, stop } = await serve('--socket', bench.path('socket'), makeImage());
    const names = ['in-order', 'random-depth-1', 'random-depth-32', 'random-4-connections'];
    expectReads(fio('nbd.fio', { URI: uri }), names);
    expect(await stop()).toBe(0);
  });
});
