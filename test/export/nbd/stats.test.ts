/** Counting of requests: every one once, with its bytes, whatever the way it is answered. */

import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import type { HeaderStyle } from '../../../src/export/nbd/headers.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import { openImage } from '../../../src/chain/open.ts';
import { countReads, statsReport } from '../../../src/operations/stats.ts';
import { allocateStats, RequestStats, sumStats } from '../../../src/util/request-stats.ts';
import type { KindTotals } from '../../../src/util/request-stats.ts';
import { describePeers } from '../../support/peers.ts';
import { qemuImg, qemuIo } from '../../support/qemu.ts';
import { talk } from './session.ts';
import { be, CMD, FLAG, request } from './wire.ts';
import type { RequestFields } from './wire.ts';

const MiB = 1024 * 1024;

/** Reads of its second mebibyte fail. */
class FailingDevice extends MemoryDevice {
  override read(target: Uint8Array, offset: number): void {
    if (offset + target.length > MiB) throw new Qcow2Error('CORRUPT', 'it is broken here');
    super.read(target, offset);
  }
}

/** The bytes of a request in a style, with its payload. */
function bytesOf(fields: RequestFields, style: HeaderStyle): Buffer {
  const { type, flags = 0, offset = 0, length = 0 } = fields;
  const payload = Buffer.alloc(type === CMD.WRITE ? length : 0, 0x5a);
  if (style !== 'extended') return Buffer.concat([request(fields), payload]);
  const announced = type === CMD.WRITE ? FLAG.PAYLOAD_LEN : 0;
  const header = be([32, 0x21e41c71], [16, flags | announced], [16, type], [64, 7n]);
  return Buffer.concat([header, be([64, offset], [64, length]), payload]);
}

const REQUESTS: readonly RequestFields[] = [
  { type: CMD.READ, offset: 10, length: 512 },
  // In pieces, in its turn.
  { type: CMD.READ, offset: 0, length: MiB },
  { type: CMD.READ, length: 0 },
  { type: CMD.READ, offset: 4 * MiB, length: 1 },
  // Fails in the middle.
  { type: CMD.READ, offset: MiB - 4096, length: 8192 },
  { type: CMD.READ, offset: MiB - 400_000, length: 800_000 },
  { type: CMD.WRITE, offset: 0, length: 70_000 },
  { type: CMD.WRITE, offset: 0, length: 0 },
  { type: CMD.WRITE, offset: 4 * MiB - 1, length: 2 },
  { type: CMD.WRITE_ZEROES, offset: 0, length: 4096 },
  { type: CMD.WRITE_ZEROES, offset: 0, length: 4 * MiB },
  { type: CMD.TRIM, offset: 0, length: 8192 },
  { type: CMD.TRIM, offset: 0, length: 5 * MiB },
  { type: CMD.FLUSH },
  { type: CMD.CACHE, offset: 0, length: 65_536 },
  // Nobody has agreed on a context.
  { type: CMD.BLOCK_STATUS, offset: 0, length: 512 },
  { type: 77 },
];

describe.each(['simple', 'structured', 'extended'] as const)('%s requests', (style) => {
  /** What is counted when the requests arrive in pieces of so many bytes. */
  function counted(pieceBytes: number): Record<string, KindTotals> {
    const memory = allocateStats(1);
    const stats = new RequestStats(memory, 0);
    const input = Buffer.concat(REQUESTS.map((fields) => bytesOf(fields, style)));
    const pieces: Buffer[] = [];
    for (let at = 0; at < input.length; at += pieceBytes) {
      pieces.push(input.subarray(at, at + pieceBytes));
    }
    const device = new FailingDevice(new Uint8Array(4 * MiB).fill(3));
    const session = talk(pieces, device, new BufferPool(), { style, isWritable: true, stats });
    expect(session.result).toBe('wait');
    return sumStats(memory).kinds;
  }

  it.each([50_000_000, 1000, 17])('are counted, arriving %i bytes at a time', (pieceBytes) => {
    const { read, write, zero, trim, flush, extents, other } = counted(pieceBytes);
    expect(read).toMatchObject({ count: 6, errors: 3, bytes: 512 + MiB });
    expect(write).toMatchObject({ count: 3, errors: 1, bytes: 70_000 });
    expect(zero).toMatchObject({ count: 2, errors: 0, bytes: 4096 + 4 * MiB });
    expect(trim).toMatchObject({ count: 2, errors: 1, bytes: 8192 });
    expect(flush).toMatchObject({ count: 1, errors: 0, bytes: 0 });
    expect(extents).toMatchObject({ count: 1, errors: 1, bytes: 0 });
    expect(other).toMatchObject({ count: 2, errors: 1, bytes: 0 });
    for (const { p50Ms, p99Ms, maxMs } of [read!, write!, other!]) {
      expect(p50Ms).toBeGreaterThan(0);
      expect(p50Ms).toBeLessThanOrEqual(p99Ms);
      expect(p99Ms).toBeLessThanOrEqual(maxMs);
    }
  });
});

describe('the depth of the queue', () => {
  function depths(chunks: readonly Buffer[]): { meanDepth: number; maxDepth: number } {
    const memory = allocateStats(1);
    const stats = new RequestStats(memory, 0);
    const device = new MemoryDevice(new Uint8Array(MiB));
    talk(chunks, device, new BufferPool(), { isWritable: true, stats });
    return sumStats(memory);
  }
  const read = request({ type: CMD.READ, length: 512 });

  it('is one where requests come one by one', () => {
    expect(depths([read, read, read])).toMatchObject({ meanDepth: 1, maxDepth: 1 });
  });

  it('is how many have come and are not answered', () => {
    // The first finds four, the last is alone.
    expect(depths([Buffer.concat([read, read, read, read])])).toMatchObject({
      meanDepth: 2.5,
      maxDepth: 4,
    });
  });

  it('does not take payload for requests', () => {
    const write = Buffer.concat([request({ type: CMD.WRITE, length: 2800 }), Buffer.alloc(2800)]);
    expect(depths([Buffer.concat([write, write])])).toMatchObject({ meanDepth: 1.5, maxDepth: 2 });
    // The rest of a payload comes with the next request.
    const all = Buffer.concat([write, read]);
    expect(depths([all.subarray(0, 1000), all.subarray(1000)]).maxDepth).toBeLessThanOrEqual(2);
  });
});

describePeers(['qemu-img', 'qemu-io', 'nbdcopy', 'koffi'], 'what the host sends', () => {
  let directory: string;

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'qcow2-nbd-stats-'));
  });

  afterEach(() => rmSync(directory, { recursive: true }));

  it('from the file of a layer is counted there', async () => {
    const path = (name: string) => join(directory, name);
    qemuImg('create', '-q', '-f', 'qcow2', path('base.qcow2'), '8M');
    qemuIo(path('base.qcow2'), ['write -P 3 0 8M']);
    const backing = ['-b', path('base.qcow2'), '-F', 'qcow2'];
    qemuImg('create', '-q', '-f', 'qcow2', ...backing, path('top.qcow2'));
    qemuIo(path('top.qcow2'), ['write -P 4 0 2M']);
    const memory = allocateStats(1);
    const stats = new RequestStats(memory, 0);
    using image = openImage(path('top.qcow2'));
    const files = countReads(image, stats);
    const socketPath = path('socket');
    await using server = await serveNbd([{ name: '', device: image }], { socketPath }, { stats });
    expect(server.clientCount).toBe(0);
    await promisify(execFile)('nbdcopy', [server.uris()[0]!, 'null:']);
    const report = statsReport({ memory, files: () => files });
    expect(report.requests.read.bytes).toBe(8 * MiB);
    const [base, top] = report.layers;
    // All of the data once, and some tables.
    for (const [layer, bytes] of [
      [base!, 6 * MiB],
      [top!, 2 * MiB],
    ] as const) {
      expect(layer.bytes).toBeGreaterThanOrEqual(bytes);
      expect(layer.bytes).toBeLessThan(bytes + 128 * 1024);
    }
  });
});
