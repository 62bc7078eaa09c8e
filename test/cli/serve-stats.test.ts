/** `qcow2 serve --stats`: what it tells at the end, and when it is asked by a signal. */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { StatsReport } from '../../src/operations/stats.ts';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { qemuImg, qemuIo, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { CLI, servers } from './serve-process.ts';

const MEBIBYTE = 1024 * 1024;

describePeers(['qemu-img', 'qemu-io', 'nbdcopy', 'python3-libnbd'], 'serve --stats', () => {
  const directory = temporaryDirectoryPerTest();
  const serve = servers(directory);
  const path = (name: string) => join(directory(), name);

  /** A compressed image under one that holds the second half itself. */
  function makeImages(): void {
    qemuImg('create', '-q', '-f', 'qcow2', path('plain.qcow2'), '8M');
    qemuIo(path('plain.qcow2'), ['write -P 7 0 8M']);
    qemuImg('convert', '-c', '-O', 'qcow2', path('plain.qcow2'), path('base.qcow2'));
    qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', path('top.qcow2'));
    qemuIo(path('top.qcow2'), ['write -P 8 4M 4M']);
  }

  /** A server, and the reports that it has printed so far. */
  async function serving(...args: string[]) {
    makeImages();
    const server = await serve('--stats', '--socket', path('socket'), ...args, path('top.qcow2'));
    let printed = '';
    server.child.stdout!.on('data', (chunk: Buffer) => (printed += chunk.toString()));
    const reports = (): StatsReport[] =>
      printed
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => (JSON.parse(line) as { stats: StatsReport }).stats);
    return { ...server, reports };
  }

  it('counts exactly what clients ask for, as JSON', async () => {
    const { uri, child, reports, stop } = await serving('--rw');
    const script = [
      'import nbd',
      'h = nbd.NBD()',
      `h.connect_uri(${JSON.stringify(uri)})`,
      'for i in range(100): h.pread(4096, i * 8192)',
      'h.pwrite(bytes(70000), 5 << 20)',
      'h.zero(65536, 6 << 20)',
      'h.trim(65536, 7 << 20)',
      'h.flush()',
      'h.shutdown()',
    ];
    run(SYSTEM_PYTHON, ['-c', script.join('\n')]);
    child.kill('SIGUSR1');
    await until(() => reports().length === 1);
    const [{ requests, queueDepth }] = reports() as [StatsReport];
    expect(requests.read).toMatchObject({ requests: 100, errors: 0, bytes: 100 * 4096 });
    expect(requests.write).toMatchObject({ requests: 1, errors: 0, bytes: 70_000 });
    expect(requests.zero).toMatchObject({ requests: 1, errors: 0, bytes: 65_536 });
    expect(requests.trim).toMatchObject({ requests: 1, errors: 0, bytes: 65_536 });
    expect(requests.flush).toMatchObject({ requests: 1, errors: 0 });
    expect(queueDepth).toEqual({ mean: 1, max: 1, now: null });
    const { mean, p50, p99, max } = requests.read.latencyUs;
    expect(p50).toBeGreaterThan(0);
    expect(p50).toBeLessThanOrEqual(p99);
    expect(p99).toBeLessThanOrEqual(max);
    expect(mean).toBeLessThanOrEqual(max);
    expect(await stop()).toBe(0);
    // Once more at the end.
    expect(reports()).toHaveLength(2);
    expect(reports()[1]!.requests.read).toEqual(requests.read);
  });

  it('adds up what several threads serve, and what they read of which layer', async () => {
    const { uri, reports, stop } = await serving('--threads', '3');
    for (let pass = 0; pass < 2; pass++) run('nbdcopy', ['--connections=4', uri, 'null:']);
    expect(await stop()).toBe(0);
    const [{ requests, layers, cache }] = reports() as [StatsReport];
    expect(requests.read.bytes).toBe(2 * 8 * MEBIBYTE);
    expect(requests.read.errors).toBe(0);
    const [base, top] = layers;
    expect(base).toMatchObject({ layer: 0, file: path('base.qcow2') });
    expect(top).toMatchObject({ layer: 1, file: path('top.qcow2') });
    expect(top!.bytes).toBeGreaterThanOrEqual(2 * 4 * MEBIBYTE);
    expect(top!.bytes).toBeLessThan(2 * 4 * MEBIBYTE + 256 * 1024);
    expect(base!.bytes).toBeGreaterThan(0);
    // All clusters were decompressed once, before or when they were asked for, and kept.
    const { hits, misses, readAheadHits } = cache!;
    expect(misses + readAheadHits).toBeGreaterThanOrEqual(64);
    expect(hits).toBeGreaterThanOrEqual(64);
  });

  it('tells people in a table, on standard error', () => {
    makeImages();
    const server = [process.execPath, CLI, 'serve', '--stats', path('top.qcow2')];
    const result = tryRun('nbdcopy', ['--', '[', ...server, ']', 'null:']);
    expect(result).toMatchObject({ exitCode: 0 });
    expect(result.stderr).toMatch(
      / requests +errors +bytes +mean +p50 +p99 +max\nread +\d+ +0 +8\.00 MiB /,
    );
    expect(result.stderr).toMatch(/queue depth: [\d.]+ on average, \d+ at most\n/);
    expect(result.stderr).toMatch(/\n0 +\d+ .*base\.qcow2\n1 +\d+ .*top\.qcow2\n/);
  });

  it('is refused where nobody could be told', () => {
    makeImages();
    const args = ['serve', '--stats', '--fork', '--socket', path('socket'), path('top.qcow2')];
    const result = tryRun(process.execPath, [CLI, ...args]);
    expect(result.exitCode).not.toBe(0);
    expect(result.stderr).toContain('--fork leaves nobody to tell the --stats to');
  });
});
