/** Repairs an image with repairImage and a copy of it with `qemu-img check -r`, and compares them. */

import { createHash } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { Qcow2Error } from '../../src/errors.ts';
import { openForRepair, repairImage } from '../../src/operations/check.ts';
import type { CheckResult } from '../../src/operations/check.ts';
import { tryRun } from '../support/qemu.ts';

/** What came of a repair. */
interface Repaired {
  /** Undefined where it was refused or failed. */
  result: CheckResult | undefined;
  /** What was said on the way. */
  messages: string;
  /** Exit code of `qemu-img check` afterwards. */
  after: number;
  /** A hash of what QEMU reads of the disk afterwards, or why it does not. */
  data: string;
}

/** Longer than any repair of a small image takes; QEMU may make it a huge one. */
const TIMEOUT_MS = 20_000;

/**
 * Repairs the image at `path`, which is left as we repair it.
 * @returns complaints; none if ours is as good as QEMU's
 */
export function compareRepairs(path: string, fix: 'leaks' | 'all'): string[] {
  const bytes = readFileSync(path);
  const dataBefore = dataOf(path);
  if (isOutside(path)) return complainAlone(path, fix, dataBefore);
  const theirs = qemuRepair(path, fix);
  writeFileSync(path, bytes);
  const ours = ourRepair(path, fix);
  const complaints: string[] = [];
  const complain = (what: string): void => {
    complaints.push(`-r ${fix}: ${what}\n  ours:   ${summary(ours)}\n  theirs: ${summary(theirs)}`);
  };
  if (ours.result === undefined && !readFileSync(path).equals(bytes)) {
    complain('it was refused, but something was written');
  }
  if (ours.data !== theirs.data && ours.data !== dataBefore) complain('the disk reads otherwise');
  // QEMU stores bitmaps anew when it closes an image, lost bits as zeroes; it has told of them before.
  const isLost = fix === 'leaks' && (theirs.result?.corruptions ?? 0) > 0;
  if (SEVERITY[ours.after]! > SEVERITY[theirs.after]! && !isLost) {
    complain('QEMU leaves less that is wrong');
  }
  if (theirs.result === undefined) return complaints;
  if (ours.result === undefined) complain('QEMU does not refuse it');
  else complaints.push(...compareCounts(ours, theirs).map((what) => `-r ${fix}: ${what}`));
  return complaints;
}

/** Whether a refcount block is past the end: QEMU makes the file so long, and takes its time. */
function isOutside(path: string): boolean {
  return tryRun('qemu-img', ['check', '-f', 'qcow2', path]).stderr.includes('is outside image');
}

/** Complaints about our repair of an image that QEMU is not asked to repair. */
function complainAlone(path: string, fix: 'leaks' | 'all', dataBefore: string): string[] {
  const { result, data, messages } = ourRepair(path, fix);
  const complaints: string[] = [];
  if (dataBefore !== 'none' && data !== dataBefore) complaints.push('the disk reads otherwise');
  if (fix === 'all' && isOutside(path)) complaints.push('a refcount block is still outside');
  if (fix === 'all' && result === undefined && !messages.includes('nothing is repaired')) {
    complaints.push(`it was refused: ${messages.slice(-200)}`);
  }
  return complaints;
}

/** Exit codes of `qemu-img check`, the worse the higher. */
const SEVERITY: Record<number, number> = { 0: 0, 3: 1, 2: 2, 1: 3 };

const COUNTS = [
  'corruptions',
  'leaks',
  'check-errors',
  'corruptions-fixed',
  'leaks-fixed',
] as const;

/** Counts that differ without a reason. */
function compareCounts(ours: Repaired, theirs: Repaired): string[] {
  // What QEMU frees it also overwrites with zeroes, and then it may find more that is wrong.
  const isOtherwise = ours.after !== theirs.after;
  const isRebuilt = theirs.messages.includes('Rebuilding');
  const difference = (key: (typeof COUNTS)[number]): number =>
    (ours.result![key] ?? 0) - (theirs.result![key] ?? 0);
  const isLess = difference('corruptions') < 0;
  return COUNTS.filter((key) => !isOtherwise && !(isRebuilt && key.includes('leaks')))
    .filter((key) =>
      isLess ? difference(key) > 0 && !key.includes('-fixed') : difference(key) !== 0,
    )
    .map((key) => `${key}: ${summary(ours)} but QEMU ${summary(theirs)}`);
}

function summary({ result, after, messages }: Repaired): string {
  return `${JSON.stringify(result)}, then exit code ${after}; ${messages.slice(-300)}`;
}

function ourRepair(path: string, fix: 'leaks' | 'all'): Repaired {
  const messages: string[] = [];
  let result: CheckResult | undefined;
  try {
    using image = openForRepair(path, { format: 'qcow2' });
    if (image.format !== 'qcow2') throw new Error('it was opened as qcow2');
    const onProblem = ({ message }: { message: string }): number => messages.push(message);
    result = repairImage(image, { fix, onProblem });
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    messages.push(error.message);
  }
  return { result, messages: messages.join('\n'), after: checkOf(path), data: dataOf(path) };
}

function qemuRepair(path: string, fix: 'leaks' | 'all'): Repaired {
  const args = ['check', '-f', 'qcow2', '-r', fix, '--output=json', path];
  const { stdout, stderr } = tryRun('qemu-img', args, { timeoutMs: TIMEOUT_MS });
  const result = stdout === '' ? undefined : (JSON.parse(stdout) as CheckResult);
  return { result, messages: stderr, after: checkOf(path), data: dataOf(path) };
}

function checkOf(path: string): number {
  const args = ['check', '-q', '-f', 'qcow2', path];
  return tryRun('qemu-img', args, { timeoutMs: TIMEOUT_MS }).exitCode;
}

function dataOf(path: string): string {
  const raw = `${path}.raw`;
  const args = ['convert', '-f', 'qcow2', '-O', 'raw', path, raw];
  const { exitCode } = tryRun('qemu-img', args, { timeoutMs: TIMEOUT_MS });
  const data = exitCode === 0 ? createHash('sha1').update(readFileSync(raw)).digest('hex') : 'none';
  rmSync(raw, { force: true });
  return data;
}
