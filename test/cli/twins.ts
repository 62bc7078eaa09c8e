/**
 * Runs a command that changes images and qemu-img on equal images, and holds what they print and
 * what they leave behind against each other.
 */

import { existsSync, mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { expect } from 'vitest';
import type { CommandDefinition } from '../../src/cli/command.ts';
import { qemuImgJson, run, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';

/** Two directories with the same files: one for this package's command, one for qemu-img. */
export interface Twins {
  ours: string;
  theirs: string;
}

/**
 * Has `make` fill a directory, which must hold relative names only, and makes a twin of it.
 * @param directory an empty one (default: one that is removed after the test)
 */
export function makeTwins(
  make: (directory: string) => void,
  directory: string = temporaryDirectory(),
): Twins {
  const [first, ours, theirs] = ['first', 'ours', 'theirs'].map((name) => join(directory, name));
  mkdirSync(first!);
  make(first!);
  // Two copies, so that both have the same holes.
  for (const copy of [ours!, theirs!]) run('cp', ['-a', '--sparse=always', first!, copy]);
  return { ours: ours!, theirs: theirs! };
}

/** Arguments in which `DIR/` stands for the twin's directory. */
function inDirectory(args: readonly string[], directory: string): string[] {
  return args.map((argument) => argument.replaceAll('DIR/', `${directory}/`));
}

/** Runs this package's command in its twin, and qemu-img's of the same name in the other. */
export async function runTwins(
  command: CommandDefinition,
  { ours, theirs }: Twins,
  args: readonly string[],
): Promise<{ ours: RunResult; theirs: RunResult }> {
  return {
    ours: await runCommand(command, inDirectory(args, ours)),
    theirs: tryRun('qemu-img', [command.name, ...inDirectory(args, theirs)]),
  };
}

/** Expects of both the same output, and of both a complaint or neither. */
export async function expectAsQemu(
  command: CommandDefinition,
  twins: Twins,
  args: readonly string[],
): Promise<RunResult> {
  const { ours, theirs } = await runTwins(command, twins, args);
  const told = { ...ours, stderr: ours.stderr !== '' };
  expect(told, `${ours.stderr}\n${theirs.stderr}`).toEqual({
    exitCode: theirs.exitCode,
    stdout: theirs.stdout.replaceAll(twins.theirs, twins.ours),
    stderr: theirs.stderr !== '',
  });
  // Whatever goes wrong is told in one line.
  if (ours.exitCode !== 0) expect(ours.stderr).toMatch(/^qcow2: .+\n$/);
  return ours;
}

/**
 * Expects an image of both twins to read the same, to say the same about itself, to have the same
 * allocated unless `allocation` is false, and that nothing is wrong with ours.
 */
export function expectSameImage(
  { ours, theirs }: Twins,
  name: string,
  { format = 'qcow2', allocation = true }: { format?: string; allocation?: boolean } = {},
): void {
  const [a, b] = [join(ours, name), join(theirs, name)];
  expect(existsSync(a)).toBe(existsSync(b));
  if (!existsSync(a)) return;
  const compared = tryRun('qemu-img', ['compare', '-f', format, '-F', format, a, b]);
  expect(compared.stdout, compared.stderr).toBe('Images are identical.\n');
  expect(infoOf(a, format)).toEqual(infoOf(b, format));
  if (allocation) expect(mapOf(a, format)).toEqual(mapOf(b, format));
  if (format === 'qcow2') expectClean(a);
}

/** Expects that qemu-img finds nothing wrong with an image, not even a leak. */
export function expectClean(path: string): void {
  const { exitCode, stdout, stderr } = tryRun('qemu-img', ['check', '-f', 'qcow2', path]);
  expect(exitCode, stdout + stderr).toBe(0);
}

/** What an image says about itself, without what is no part of it. */
function infoOf(path: string, format: string): unknown {
  const document = JSON.stringify(qemuImgJson('info', '-f', format, path));
  const names = document.replaceAll(`${dirname(path)}/`, '');
  const info = JSON.parse(names) as Record<string, unknown>;
  const rest = { ...info, 'actual-size': 0, filename: '', 'full-backing-filename': '' };
  const { snapshots } = info as { snapshots?: Record<string, unknown>[] };
  if (snapshots === undefined) return rest;
  // Made at different times.
  const undated = snapshots.map((row) => ({ ...row, 'date-sec': 0, 'date-nsec': 0 }));
  return { ...rest, snapshots: undated };
}

interface MapEntry {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
}

/**
 * Which layer holds what. Where in the files that is may differ, and so may what of stored bytes is
 * known to be zero: QEMU looks for holes of the host file or not, by the space that the file takes.
 * Zeroes may have an entry that says so, or none where nothing else would show.
 */
function mapOf(path: string, format: string): MapEntry[] {
  const entries = qemuImgJson('map', '-f', format, path) as MapEntry[];
  const merged: MapEntry[] = [];
  for (const { start, length, depth, present, data, ...entry } of entries) {
    const zero = entry.zero && !data;
    const isPresent = present || zero;
    const last = merged.at(-1);
    const isSame =
      last?.depth === depth &&
      last.present === isPresent &&
      last.zero === zero &&
      last.data === data;
    if (isSame) last.length += length;
    else merged.push({ start, length, depth, present: isPresent, zero, data });
  }
  return merged;
}
