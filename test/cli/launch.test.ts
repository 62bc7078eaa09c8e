/** How the built command starts. */

import { spawnSync } from 'node:child_process';
import { cpSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { expect, it } from 'vitest';
import { CLI_PATH } from '../support/cli.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();

function versionOf(program: string, environment: NodeJS.ProcessEnv = {}): string {
  const env = { ...process.env, ...environment };
  const { stdout } = spawnSync(process.execPath, [program, '--version'], { env, encoding: 'utf8' });
  return stdout;
}

it('starts where Node loads something of its user before', () => {
  const path = join(directory(), 'first.mjs');
  writeFileSync(path, 'export {};\n');
  expect(versionOf(CLI_PATH, { NODE_OPTIONS: `--import ${path}` })).toMatch(/^qcow2 \d/);
});

it.each([
  ['is missing', (cache: string) => rmSync(cache)],
  ['is of another version of V8', (cache: string) => writeFileSync(cache, Buffer.alloc(4096, 1))],
  ['is empty', (cache: string) => writeFileSync(cache, '')],
])('starts where the compiled code %s', (_, spoil) => {
  const dist = join(directory(), 'dist');
  cpSync(dirname(CLI_PATH), dist, { recursive: true });
  writeFileSync(join(directory(), 'package.json'), '{"type":"module"}');
  spoil(join(dist, 'program.cjs.cache'));
  expect(versionOf(join(dist, 'cli.cjs'))).toMatch(/^qcow2 \d/);
});

it('is qemu-img through a link of that name', () => {
  const link = join(directory(), 'qemu-img');
  symlinkSync(CLI_PATH, link);
  expect(versionOf(link)).toMatch(/^qemu-img version/);
});
