/** `qcow2 check` beside `qemu-img check`: what it prints, and its exit codes. */

import { basename, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { command } from '../../src/cli/commands/check.ts';
import { openForRepair } from '../../src/operations/check.ts';
import { corpusImages, unpackImage } from '../images/corpus.ts';
import { qemuImg, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';

const directory = sharedTemporaryDirectory();

function corpusImage(name: string): string {
  const image = corpusImages().find((candidate) => candidate.name === name);
  if (image === undefined) throw new Error(`the corpus has no ${name}`);
  return unpackImage(image, join(directory, basename(name)));
}

function qemu(args: readonly string[]): RunResult {
  const result = tryRun('qemu-img', ['check', ...args]);
  return { ...result, stderr: result.stderr.replaceAll('qemu-img: ', 'qcow2: ') };
}

describe('qcow2 check', () => {
  it.each([
    ['features/version-3', 0],
    ['features/size-zero', 0],
    ['features/bitmap-in-use', 0],
    ['damage/refcount-block-unaligned', 1],
    ['damage/copied-and-leak', 2],
    ['damage/l1-unaligned', 2],
    ['damage/refcount-bits-64-huge', 2],
    ['damage/compressed-far', 2],
    ['damage/leaked-clusters', 3],
  ])('prints of %s what qemu-img prints', async (name, exitCode) => {
    const path = corpusImage(name);
    for (const args of [[path], ['-f', 'qcow2', '--output=json', path], ['-q', '-U', path]]) {
      const theirs = qemu(args);
      expect(await runCommand(command, args)).toEqual(theirs);
      expect(theirs.exitCode).toBe(exitCode);
    }
  });

  it('tells that other formats cannot be checked', async () => {
    const path = join(directory, 'disk.raw');
    qemuImg('create', '-q', '-f', 'raw', path, '1M');
    expect(await runCommand(command, ['-f', 'raw', path])).toEqual(qemu(['-f', 'raw', path]));
    const json = await runCommand(command, ['--output=json', path]);
    expect(json).toMatchObject({ exitCode: 63, stdout: '' });
  });

  it('fails on images that cannot be opened or checked', async () => {
    for (const path of [join(directory, 'nowhere'), corpusImage('damage/snapshot-extra-huge')]) {
      const ours = await runCommand(command, [path]);
      expect(ours).toMatchObject({ exitCode: 1, stdout: '' });
      expect(ours.stderr).toMatch(/^qcow2: .*\n$/);
      expect(qemu([path])).toMatchObject({ exitCode: 1, stdout: '' });
    }
  });

  it('checks images whose backing file the policy refuses', async () => {
    const { exitCode, stdout } = await runCommand(command, [
      corpusImage('damage/backing-undeclared'),
    ]);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('No errors were found');
  });

  it('shows progress when it is asked for', async () => {
    const { stdout } = await runCommand(command, ['-p', corpusImage('features/version-3')]);
    expect(stdout).toContain('(100.00/100%)');
    expect(stdout).toContain('No errors were found');
  });

  it.each([
    ['leaks', 'damage/copied-and-leak', 0],
    ['leaks', 'damage/l1-past-end', 2],
    ['leaks', 'damage/refcount-data-2', 0],
    ['all', 'damage/leaked-clusters', 0],
    ['all', 'damage/l2-zero-unaligned', 0],
    ['all', 'damage/refcount-shared-1', 0],
    ['all', 'damage/l1-reserved', 2],
    ['all', 'features/version-3', 0],
  ])('repairs %s of %s as qemu-img does', async (fix, name, exitCode) => {
    for (const output of ['human', 'json']) {
      const args = ['-f', 'qcow2', '-r', fix, `--output=${output}`];
      const theirs = qemu([...args, corpusImage(name)]);
      expect(await runCommand(command, [...args, corpusImage(name)])).toEqual(theirs);
      expect(theirs.exitCode).toBe(exitCode);
    }
  });

  it('says that refcounts have to be rebuilt, and rebuilds them with -r all', async () => {
    const path = corpusImage('damage/refcount-block-missing');
    const ours = await runCommand(command, ['-r', 'leaks', path]);
    expect(ours).toMatchObject({ exitCode: 1, stdout: '' });
    expect(ours.stderr).toMatch(/ERROR need to rebuild refcount structures\nqcow2: .*\n$/);
    expect(qemu([path]).exitCode).toBe(2);
    const all = await runCommand(command, ['-r', 'all', path]);
    expect(all.stderr).toContain('Rebuilding refcount structure\n');
    expect(all.stdout).toContain('    0 leaked clusters\n    11 corruptions\n\n');
    expect(all.exitCode).toBe(0);
    expect(qemu([path]).exitCode).toBe(0);
  });

  it('repairs nothing that is in use', async () => {
    const path = corpusImage('damage/leaked-cluster');
    using writer = openForRepair(path);
    const ours = await runCommand(command, ['-r', 'all', path]);
    expect(ours).toMatchObject({ exitCode: 1, stdout: '' });
    expect(writer.readOnly).toBe(false);
    expect(qemu(['-U', path]).exitCode).toBe(3);
  });
});
