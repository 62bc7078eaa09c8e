/**
 * The program that reads hostile images for the tests, in a process of its own, so that a crash, a
 * hang or a hunger for memory can be told: it is sent paths and answers with {@link Report}s.
 */

import { createHash } from 'node:crypto';
import { cpuUsage, memoryUsage, resourceUsage } from 'node:process';
import { openImage } from '../../src/chain/open.ts';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { checkImage } from '../../src/operations/check.ts';
import { HASHED_BYTES } from './reader-limits.ts';
import { readPartitionTable } from '../../src/format/partition/index.ts';

/** What an attempt to read a part threw. */
export interface PartError {
  /** Whether it is a `Qcow2Error`. */
  isTyped: boolean;
  code?: string | undefined;
  structure?: string | undefined;
  offset?: number | undefined;
  message: string;
}

/** What became of one part of an image. */
export interface PartReport {
  /** `open`, `disk`, `snapshot 1`, `bitmap bits`, `check`, … */
  part: string;
  /** Bytes, where the part is an array of bytes. */
  size?: number;
  /** SHA-256 of its first {@link HASHED_BYTES}. */
  sha256?: string;
  error?: PartError | undefined;
}

/** What became of an image. */
export interface Report {
  parts: PartReport[];
  /** Time on the processor: what other programs do at the time does not count. */
  elapsedMs: number;
  /** How far the process grew beyond what it had before, at its peak. */
  growthBytes: number;
}

const CHUNK = 256 * 1024;

function attempt(parts: PartReport[], part: string, work: () => Partial<PartReport>): void {
  try {
    parts.push({ part, ...work() });
  } catch (error) {
    parts.push({ part, error: describeError(error) });
  }
}

function describeError(error: unknown): PartError {
  if (!(error instanceof Qcow2Error)) {
    const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return { isTyped: false, message };
  }
  const { code, structure, offset, message } = error;
  return { isTyped: true, code, structure, offset, message };
}

/** Reads the start of a device, its end, and asks for the extents of both. */
function readDevice(device: BlockDevice): Partial<PartReport> {
  const hash = createHash('sha256');
  const head = Math.min(device.size, HASHED_BYTES);
  const buffer = Buffer.alloc(CHUNK);
  for (let at = 0; at < head; at += CHUNK) {
    const piece = buffer.subarray(0, Math.min(CHUNK, head - at));
    device.read(piece, at);
    hash.update(piece);
  }
  const tail = Math.max(head, device.size - CHUNK);
  const rest = buffer.subarray(0, device.size - tail);
  device.read(rest, tail);
  for (const [offset, length] of [
    [0, head],
    [tail, rest.length],
  ] as const) {
    checkExtents(device, offset, length);
  }
  return { size: device.size, sha256: hash.digest('hex') };
}

/** Extents have to cover their range without gaps, whatever the image says. */
function checkExtents(device: BlockDevice, offset: number, length: number): void {
  let at = offset;
  for (const extent of device.extents(offset, length)) {
    if (extent.offset !== at || extent.length <= 0) {
      throw new Error(`extent at ${extent.offset} of ${extent.length} bytes where ${at} is due`);
    }
    at += extent.length;
  }
  if (at !== offset + length) throw new Error(`extents end at ${at}, not ${offset + length}`);
}

function readImage(path: string): PartReport[] {
  const parts: PartReport[] = [];
  attempt(parts, 'open', () => {
    const image = openImage(path, { format: 'qcow2' });
    try {
      attempt(parts, 'disk', () => readDevice(image));
      attempt(parts, 'partitions', () => {
        readPartitionTable(image);
        return {};
      });
      if (image.format !== 'qcow2') throw new Error('opened as qcow2, and is not');
      for (const { id } of image.snapshots.slice(0, 4)) {
        attempt(parts, `snapshot ${id}`, () => {
          using snapshot = image.openSnapshot(id);
          const result = readDevice(snapshot);
          if (snapshot.info.vmStateSize > 0) readDevice(snapshot.openVmState());
          return result;
        });
      }
      attempt(parts, 'bitmaps', () => {
        for (const bitmap of image.bitmaps.slice(0, 4)) {
          if (bitmap.isInconsistent) continue;
          for (const { offset, length } of image.dirtyRanges(bitmap.name)) {
            const isInside = offset >= 0 && length > 0 && offset + length <= image.size;
            if (!isInside) throw new Error(`range at ${offset} of ${length} bytes`);
          }
        }
        return {};
      });
      attempt(parts, 'check', () => {
        checkImage(image);
        return {};
      });
    } finally {
      image.close();
    }
    return {};
  });
  return parts;
}

function report(path: string): Report {
  const before = memoryUsage.rss();
  const peakBefore = resourceUsage().maxRSS * 1024;
  const start = cpuUsage();
  const parts = readImage(path);
  const { user, system } = cpuUsage(start);
  const elapsedMs = (user + system) / 1000;
  const peak = resourceUsage().maxRSS * 1024;
  // The high-water mark of the process says nothing of this image unless it rose.
  return { parts, elapsedMs, growthBytes: peak > peakBefore ? peak - before : 0 };
}

process.on('message', (path: string) => {
  process.send?.(report(path));
});
