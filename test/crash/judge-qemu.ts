/** Has QEMU judge what a crash left. */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { FILE_NAMES } from '../support/image-variants.ts';
import type { FileRole } from '../support/image-variants.ts';
import { run, tryRun } from '../support/qemu.ts';
import type { World } from './guest-history.ts';
import { contentProblem } from './judge.ts';
import type { CrashedFiles, ReadContent, Verdict } from './judge.ts';

interface QemuCheck {
  corruptions?: number;
  leaks?: number;
  'check-errors': number;
}

interface QemuInfo {
  snapshots?: { id: string; name: string }[];
  'format-specific': { data: { 'lazy-refcounts'?: boolean; corrupt?: boolean } };
  'dirty-flag': boolean;
}

/** Judges the files with qemu-img. They are written to `directory`, which is left empty. */
export function judgeCrashWithQemu(
  directory: string,
  files: CrashedFiles,
  worlds: readonly World[],
): Verdict {
  const written: string[] = [];
  try {
    for (const [role, bytes] of Object.entries(files)) {
      const name = FILE_NAMES[role as FileRole];
      writeFileSync(join(directory, name), bytes);
      written.push(name);
    }
    const verdict = judgeFiles(directory, worlds);
    return { ...verdict, problem: verdict.problem && `QEMU: ${verdict.problem}` };
  } catch (error) {
    return { problem: `QEMU cannot read it: ${String(error)}`, leaks: 0, isDirty: false };
  } finally {
    for (const name of written) rmSync(join(directory, name));
  }
}

function judgeFiles(directory: string, worlds: readonly World[]): Verdict {
  const inDirectory = { cwd: directory };
  const { image } = FILE_NAMES;
  const infoText = run('qemu-img', ['info', '--output=json', '-f', 'qcow2', image], inDirectory);
  const info = JSON.parse(infoText) as QemuInfo;
  const isDirty = info['dirty-flag'];
  if (isDirty) tryRun('qemu-img', ['check', '-q', '-r', 'all', '-f', 'qcow2', image], inDirectory);
  const check = tryRun('qemu-img', ['check', '--output=json', '-f', 'qcow2', image], inDirectory);
  const result = JSON.parse(check.stdout) as QemuCheck;
  const { corruptions = 0, leaks = 0, 'check-errors': errors } = result;
  if (corruptions > 0 || errors > 0 || (isDirty && leaks > 0)) {
    const counts = `${corruptions} corruptions, ${leaks} leaks, ${errors} errors`;
    return { problem: `its check finds ${counts}: ${check.stderr}`, leaks, isDirty };
  }
  // Snapshots of other disk sizes are read cut or padded to today's.
  const content: ReadContent = {
    disk: readWithQemu(directory, []),
    snapshots: (info.snapshots ?? []).map(({ id, name }) => ({
      name,
      disk: readWithQemu(directory, ['-l', `snapshot.id=${id}`]),
      isOfOtherSize: true,
    })),
  };
  return { problem: contentProblem(content, worlds), leaks, isDirty };
}

function readWithQemu(directory: string, options: readonly string[]): Buffer {
  const target = 'content.raw';
  const args = ['convert', '-f', 'qcow2', '-O', 'raw', ...options, FILE_NAMES.image, target];
  run('qemu-img', args, { cwd: directory });
  const bytes = readFileSync(join(directory, target));
  rmSync(join(directory, target));
  return bytes;
}
