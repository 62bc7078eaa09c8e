/** What a mount tells about itself: the files `stats` and `stats.json`, and `mount --stats`. */

import { closeSync, openSync, readFileSync, readSync, statSync } from 'node:fs';
import { expect, it } from 'vitest';
import type { StatsReport } from '../../src/operations/stats.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';
import { until } from '../support/until.ts';
import { mountBench } from './mount-support.ts';

const MEBIBYTE = 1024 * 1024;

describePeers(['/dev/fuse', 'qemu-img', 'qemu-io', 'dd'], 'a mount', () => {
  const bench = mountBench();

  /** An overlay over a compressed image; the second half of it is its own. */
  function makeImages(): void {
    qemuImg('create', '-q', '-f', 'qcow2', bench.path('plain.qcow2'), '8M');
    qemuIo(bench.path('plain.qcow2'), ['write -P 7 0 8M']);
    const [source, base] = [bench.path('plain.qcow2'), bench.path('base.qcow2')];
    qemuImg('convert', '-c', '-O', 'qcow2', source, base);
    qemuImg('create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', bench.path('top.qcow2'));
    qemuIo(bench.path('top.qcow2'), ['write -P 8 4M 4M']);
  }

  function stats(): StatsReport {
    return JSON.parse(readFileSync(bench.path('m/stats.json'), 'utf8')) as StatsReport;
  }

  /** What was read and written between two looks at `stats.json`, less what looking took. */
  function counted(work: () => void): { before: StatsReport; after: StatsReport; look: string } {
    const look = readFileSync(bench.path('m/stats.json'), 'utf8');
    const before = JSON.parse(look) as StatsReport;
    work();
    return { before, after: stats(), look };
  }

  it('counts exactly what a client reads', () => {
    makeImages();
    bench.ok('mount', 'top.qcow2', 'm');
    // Before any of it: the size of the text is always the same.
    expect(statSync(bench.path('m/stats.json')).size % 4096).toBe(0);
    // One read(2) of a file past the cache is one request.
    const { before, after, look } = counted(() => {
      const from = `if=${bench.path('m/disk.raw')}`;
      const how = ['bs=64k', 'count=100', 'skip=10', 'iflag=direct', 'status=none'];
      run('dd', [from, 'of=/dev/null', ...how]);
    });
    const { requests, bytes, errors } = after.requests.read;
    // Looking is a read that gives the text, and one that meets its end.
    expect(requests - before.requests.read.requests).toBe(100 + 2);
    expect(bytes - before.requests.read.bytes).toBe(100 * 65_536 + look.length);
    expect(errors).toBe(0);
    expect(after.requests.write.requests).toBe(0);
    const { mean, p50, p99, max } = after.requests.read.latencyUs;
    expect(p50).toBeGreaterThan(0);
    expect(p50).toBeLessThanOrEqual(p99);
    expect(p99).toBeLessThanOrEqual(max);
    expect(mean).toBeLessThanOrEqual(max);
    bench.ok('unmount', 'm');
  });

  it('tells what it read of which layer, and how the cache did', () => {
    makeImages();
    bench.ok('mount', 'top.qcow2', 'm');
    const before = stats();
    const how = ['bs=64k', 'iflag=direct', 'status=none'];
    // Each compressed cluster once, and then the first of them again.
    for (const count of ['count=64', 'count=1']) {
      run('dd', [`if=${bench.path('m/disk.raw')}`, 'of=/dev/null', ...how, count]);
    }
    const after = stats();
    expect(after.cache!.misses + after.cache!.readAheadHits).toBeGreaterThanOrEqual(64);
    expect(after.cache!.hits).toBeGreaterThanOrEqual(1);
    const [base, top] = after.layers;
    expect(base).toMatchObject({ layer: 0, file: bench.path('base.qcow2') });
    expect(top).toMatchObject({ layer: 1, file: bench.path('top.qcow2') });
    const stored = statSync(bench.path('base.qcow2')).size;
    expect(base!.bytes - before.layers[0]!.bytes).toBeGreaterThan(0);
    // Compressed: some kilobytes, of which most is read once.
    expect(base!.bytes).toBeLessThan(2 * stored);
    const uncompressed = ['skip=64', 'count=64', ...how];
    run('dd', [`if=${bench.path('m/disk.raw')}`, 'of=/dev/null', ...uncompressed]);
    const [baseNow, topNow] = stats().layers;
    expect(baseNow!.bytes).toBe(base!.bytes);
    const ofTop = topNow!.bytes - top!.bytes;
    expect(ofTop).toBeGreaterThanOrEqual(4 * MEBIBYTE);
    expect(ofTop).toBeLessThan(4 * MEBIBYTE + 65_536);
    bench.ok('unmount', 'm');
  });

  it('counts what is written, and flushes', () => {
    makeImages();
    bench.ok('mount', '--rw', 'top.qcow2', 'm');
    const { before, after } = counted(() => {
      const how = ['bs=128k', 'count=9', 'oflag=direct', 'conv=notrunc,fsync', 'status=none'];
      run('dd', ['if=/dev/zero', `of=${bench.path('m/disk.raw')}`, ...how]);
    });
    const { write, flush } = after.requests;
    expect(write.requests - before.requests.write.requests).toBe(9);
    expect(write.bytes - before.requests.write.bytes).toBe(9 * 131_072);
    expect(flush.requests - before.requests.flush.requests).toBe(1);
    bench.ok('unmount', 'm');
  });

  it('says the same in text, and keeps it as it was for whoever opened it', () => {
    makeImages();
    bench.ok('mount', 'top.qcow2', 'm');
    const text = readFileSync(bench.path('m/stats'), 'utf8');
    expect(text).toMatch(/ requests +errors +bytes +mean +p50 +p99 +max\nread +\d+ +0 /);
    expect(text).toContain('cluster cache: ');
    expect(text).toMatch(/layer +reads +bytes +file\n0 +\d+ .*base\.qcow2\n1 +\d+ .*top\.qcow2\n$/);
    // In pieces, while it would be another text for somebody else.
    const fd = openSync(bench.path('m/stats.json'), 'r');
    try {
      let all = '';
      const piece = Buffer.alloc(100);
      for (let count; (count = readSync(fd, piece)) > 0;) {
        all += piece.toString('utf8', 0, count);
        run('head', ['-c', '4096', bench.path('m/disk.raw')]);
      }
      expect((JSON.parse(all) as StatsReport).layers).toHaveLength(2);
    } finally {
      closeSync(fd);
    }
    bench.ok('unmount', 'm');
  });

  it.each([
    ['text on standard error', 'human'],
    ['JSON on standard output', 'json'],
  ])('tells it with --stats, at the end and on SIGUSR1: %s', async (_, output) => {
    makeImages();
    const args = [bench.program, 'mount', '--foreground', '--stats', `--output=${output}`];
    const child = bench.start(process.execPath, [...args, 'top.qcow2', 'm']);
    const printed = { stdout: '', stderr: '' };
    child.stdout!.on('data', (chunk: Buffer) => (printed.stdout += chunk.toString()));
    child.stderr!.on('data', (chunk: Buffer) => (printed.stderr += chunk.toString()));
    const ended = new Promise((resolve) => child.on('close', resolve));
    await until(() => printed.stdout.includes('qcow2 unmount'));
    run('dd', [`if=${bench.path('m/disk.raw')}`, 'of=/dev/null', 'bs=1M', 'status=none']);
    const told = (): number =>
      output === 'json'
        ? printed.stdout.split('\n').filter((line) => line.startsWith('{"stats":')).length
        : printed.stderr.split('\n').filter((line) => line.startsWith('read ')).length;
    child.kill('SIGUSR1');
    await until(() => told() === 1);
    child.kill('SIGTERM');
    expect(await ended).toBe(0);
    expect(told()).toBe(2);
    if (output === 'human') {
      expect(printed.stderr.trim().split('\n').at(-1)).toMatch(/^1 .*top\.qcow2$/);
    } else {
      const { stats: last } = JSON.parse(printed.stdout.trim().split('\n').at(-1)!) as {
        stats: StatsReport;
      };
      expect(last.requests.read.bytes).toBeGreaterThanOrEqual(8 * MEBIBYTE);
      expect(printed.stderr).toBe('');
    }
  });

  it('has --stats only where somebody stays to be told', () => {
    makeImages();
    const result = bench.qcow2('mount', '--stats', 'top.qcow2', 'm');
    expect(result.exitCode).not.toBe(0);
    expect(result.stderr).toContain('--stats goes with --foreground');
  });
});
