/** Decides whether what became of a hostile image is what may become of one. */

import { createHash } from 'node:crypto';
import { copyFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { HASHED_BYTES } from './reader-limits.ts';
import type { PartReport } from './reader-child.ts';
import type { Outcome } from './reader-process.ts';

const MAX_ELAPSED_MS = 1000;
const MAX_GROWTH_BYTES = 100 * 1024 * 1024;

/** What the image reads as where nothing is wrong with it. */
export interface KnownContent {
  disk: Buffer;
  snapshot: Buffer | undefined;
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Errors that come from outside the image name a file, not a structure. */
const WITHOUT_STRUCTURE: readonly (string | undefined)[] = [
  'HOST',
  'UNKNOWN_FORMAT',
  'REFUSED',
  'CYCLE',
];

/** Complaints about time, memory, crashes and errors that are not as they should be. */
export function judgeConduct(outcome: Outcome): string[] {
  if ('died' in outcome) return [`the process died: ${outcome.died}`];
  const complaints: string[] = [];
  if (outcome.elapsedMs > MAX_ELAPSED_MS) {
    complaints.push(`took ${Math.round(outcome.elapsedMs)} ms`);
  }
  if (outcome.growthBytes > MAX_GROWTH_BYTES) {
    complaints.push(`grew by ${Math.round(outcome.growthBytes / 1024 / 1024)} MiB`);
  }
  for (const { part, error } of outcome.parts) {
    if (error === undefined) continue;
    const { isTyped, code, structure, offset, message } = error;
    if (!isTyped) complaints.push(`${part}: not a Qcow2Error: ${message}`);
    else if (message.includes('\n')) complaints.push(`${part}: not one line: ${message}`);
    else if (WITHOUT_STRUCTURE.includes(code)) continue;
    else if (structure === undefined || offset === undefined) {
      complaints.push(`${part}: does not say where: ${code}: ${message}`);
    }
  }
  return complaints;
}

/** The parts that were read, but not as what was put in. */
export function surprisingParts(outcome: Outcome, known: KnownContent): PartReport[] {
  if ('died' in outcome) return [];
  const expected = {
    disk: sha256(known.disk.subarray(0, HASHED_BYTES)),
    snapshot: known.snapshot && sha256(known.snapshot.subarray(0, HASHED_BYTES)),
  };
  return outcome.parts.filter(({ part, sha256: actual }) => {
    if (actual === undefined) return false;
    return actual !== (part === 'disk' ? expected.disk : expected.snapshot);
  });
}

/**
 * QEMU wants guest and host offsets to be equal in every external data file; the specification
 * only in raw ones.
 */
const REFUSED_BY_QEMU_ALONE = 'External data file host cluster offset';

/** What QEMU reads of the same file: a hash, why it refuses, or nothing where it crashes itself. */
export function qemuReading(path: string, part: PartReport): string | undefined {
  const answer = askQemu(path, part);
  // A bitmap that QEMU cannot load says nothing of the disk: without their bit they are not loaded.
  const copy = join(dirname(path), 'qemu-no-bitmaps.qcow2');
  if (answer?.startsWith('refused') !== true || !answer.includes('itmap')) return answer;
  try {
    const bytes = readFileSync(path);
    bytes.fill(0, 88, 96);
    writeFileSync(copy, bytes);
    return askQemu(copy, part);
  } finally {
    rmSync(copy, { force: true });
  }
}

function askQemu(path: string, { part, size = 0 }: PartReport): string | undefined {
  const directory = dirname(path);
  const raw = join(directory, 'qemu.raw');
  const copy = join(directory, 'qemu-applied.qcow2');
  const qemuImg = (...args: string[]) => tryRun('qemu-img', args, { cwd: directory });
  const refusal = ({ exitCode, stderr }: RunResult) =>
    exitCode === -1 || stderr.includes(REFUSED_BY_QEMU_ALONE)
      ? undefined
      : `refused: ${stderr.trim()}`;
  try {
    let source = path;
    if (part !== 'disk') {
      // Going back to the snapshot shows its disk in its own size.
      copyFileSync(path, copy);
      const id = part.replace('snapshot ', '');
      if (qemuImg('snapshot', '-a', id, copy).exitCode !== 0) return askForSnapshot(path, id, size);
      source = copy;
    }
    const files = [`if=${source}`, `of=${raw}`];
    const read =
      size > HASHED_BYTES
        ? qemuImg('dd', '-f', 'qcow2', '-O', 'raw', `bs=${HASHED_BYTES}`, 'count=1', ...files)
        : qemuImg('convert', '-f', 'qcow2', '-O', 'raw', source, raw);
    return read.exitCode === 0 ? sha256(readFileSync(raw)) : refusal(read);
  } finally {
    rmSync(raw, { force: true });
    rmSync(copy, { force: true });
  }
}

/**
 * What QEMU reads of a snapshot to which it cannot go back; it reads it in the disk's size of
 * today, so that there is an answer only where the sizes are equal.
 */
function askForSnapshot(path: string, id: string, size: number): string | undefined {
  const raw = join(dirname(path), 'qemu.raw');
  const args = ['convert', '-f', 'qcow2', '-O', 'raw', '-l', `snapshot.id=${id}`, path, raw];
  const { exitCode } = tryRun('qemu-img', args, { cwd: dirname(path) });
  if (exitCode !== 0) return undefined;
  const bytes = readFileSync(raw);
  return bytes.length === size ? sha256(bytes.subarray(0, HASHED_BYTES)) : undefined;
}
