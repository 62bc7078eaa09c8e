/** A directory for the images of one test file, and qemu-img as the oracle. */

import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

export const MiB = 1024 * 1024;

const directory = mkdtempSync(join(tmpdir(), 'qcow2-operations-'));
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});

/** Path of a file in the directory. */
export function scratch(name: string): string {
  return join(directory, name);
}

/** Bytes at an offset of an image. */
export type Piece = readonly [offset: number, bytes: Uint8Array];

/** Makes a sparse file that holds some pieces. Returns its path. */
export function makeRaw(name: string, size: number, pieces: readonly Piece[] = []): string {
  const path = scratch(name);
  const fd = openSync(path, 'w');
  for (const [offset, bytes] of pieces) writeSync(fd, bytes, 0, bytes.length, offset);
  ftruncateSync(fd, size);
  closeSync(fd);
  return path;
}

/** What a program printed and how it ended. */
export interface Outcome {
  status: number | null;
  stdout: string;
  stderr: string;
}

/** Runs a program to its end, whatever that is. */
export function run(program: string, args: readonly string[]): Outcome {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  return { status, stdout, stderr };
}

/** Runs qemu-img or qemu-io, which must succeed. */
export function qemu(program: 'qemu-img' | 'qemu-io', ...args: string[]): string {
  const { status, stdout, stderr } = run(program, args);
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr}`);
  return stdout;
}
