import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import {
  countReads,
  formatStats,
  formatStatsJson,
  longestStats,
  statsReport,
} from '../../src/operations/stats.ts';
import type { CacheStats, StatsReport, StatsSource } from '../../src/operations/stats.ts';
import { allocateStats, RequestKind, RequestStats } from '../../src/util/request-stats.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { describePeers } from '../support/peers.ts';
import { temporaryDirectory } from '../support/temp.ts';

const CACHE: CacheStats = {
  hits: 3,
  misses: 1,
  readAheadHits: 2,
  readAheadBytes: 1_048_576,
  wastedBytes: 262_144,
};

function source(changes: Partial<StatsSource> = {}): StatsSource & { stats: RequestStats } {
  const memory = allocateStats(2);
  const files = () => [{ layer: 0, path: '/images/base\u001b.qcow2' }];
  return { memory, files, stats: new RequestStats(memory, 1), ...changes };
}

describe('statsReport', () => {
  it('tells of each kind what was counted, in microseconds', () => {
    const { stats, ...rest } = source({ cache: () => CACHE, queued: () => 4 });
    stats.add(RequestKind.read, 65_536, 0.25);
    stats.add(RequestKind.flush, 0, 12);
    stats.addError(RequestKind.flush);
    stats.addDepth(1, 1);
    stats.fileCounter(0, 9)[1]! += 512;
    const report = statsReport(rest);
    expect(report.requests.read).toEqual({
      requests: 1,
      errors: 0,
      bytes: 65_536,
      latencyUs: { mean: 250, p50: 250, p99: 250, max: 250 },
    });
    expect(report.requests.flush).toMatchObject({ requests: 1, errors: 1, bytes: 0 });
    expect(report.requests.write).toMatchObject({ requests: 0 });
    expect(report.queueDepth).toEqual({ mean: 1, max: 1, now: 4 });
    expect(report.cache).toEqual(CACHE);
    expect(report.layers).toEqual([
      { layer: 0, file: '/images/base\u001b.qcow2', reads: 0, bytes: 512 },
    ]);
    expect(JSON.parse(formatStatsJson(report))).toEqual(report);
  });

  it('says null of what is not known', () => {
    const report = statsReport(source());
    expect(report.queueDepth).toEqual({ mean: null, max: null, now: null });
    expect(report.cache).toBeNull();
  });
});

describe('formatStats', () => {
  it('prints a table of what there was, and what the names hold cannot hurt', () => {
    const { stats, ...rest } = source({ cache: () => CACHE });
    stats.add(RequestKind.read, 65_536, 0.25);
    stats.add(RequestKind.read, 4096, 2);
    stats.addDepth(2, 2);
    const text = formatStats(statsReport(rest));
    expect(text).toMatch(/requests +errors +bytes +mean +p50 +p99 +max\n/);
    expect(text).toMatch(/read +2 +0 +68\.0 KiB +1\.13 ms +25\d µs +2\.00 ms +2\.00 ms\n/);
    expect(text).not.toMatch(/^write/m);
    expect(text).toContain('queue depth: 2 on average, 2 at most\n');
    expect(text).toContain('cluster cache: 3 hits, 1 misses (75% hits)\n');
    expect(text).toContain('read-ahead: 2 hits, 1.00 MiB read, 256 KiB wasted (25%)\n');
    expect(text).toMatch(/layer +reads +bytes +file\n0 +0 +0 B +\/images\/base\?\.qcow2\n/);
  });

  it('is never longer than it is said to become', () => {
    const { stats, ...rest } = source({ cache: () => CACHE, queued: () => 1 });
    const small = statsReport(rest);
    for (const kind of Object.values(RequestKind)) {
      stats.add(kind, 999_999_999_999_999, 99_999_999.123);
      stats.addError(kind);
    }
    stats.addDepth(10_000_000, 99_999);
    const large: StatsReport = statsReport(rest);
    for (const format of [formatStats, formatStatsJson]) {
      const most = longestStats(small, format);
      expect(Buffer.byteLength(format(large))).toBeLessThanOrEqual(most);
      expect(longestStats(large, format)).toBe(most);
    }
  });
});

describePeers(['qemu-img', 'qemu-io'], 'countReads', () => {
  it('counts exactly what is read of each file of each layer', () => {
    const directory = temporaryDirectory();
    const path = (name: string) => `${directory}/${name}`;
    qemuImg('create', '-q', '-f', 'raw', path('base.raw'), '1M');
    qemuIo(path('base.raw'), ['write -P 1 0 1M'], 'raw');
    const data = `data_file=${path('data.raw')}`;
    const backing = ['-b', 'base.raw', '-F', 'raw'];
    qemuImg('create', '-q', '-f', 'qcow2', '-o', data, ...backing, path('top.qcow2'));
    qemuIo(path('top.qcow2'), ['write -P 2 64k 64k']);
    const memory = allocateStats(1);
    const stats = new RequestStats(memory, 0);
    using image = openImage(path('top.qcow2'));
    const files = countReads(image, stats);
    expect(files).toEqual([
      { layer: 0, path: path('base.raw') },
      { layer: 1, path: path('top.qcow2') },
      { layer: 1, path: path('data.raw') },
    ]);
    image.read(new Uint8Array(131_072), 65_536);
    const [base, , external] = statsReport({ memory, files: () => files }).layers;
    expect(base).toMatchObject({ layer: 0, reads: 1, bytes: 65_536 });
    expect(external).toMatchObject({ layer: 1, reads: 1, bytes: 65_536 });
  });
});
