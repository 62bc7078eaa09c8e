/**
 * Compiles the built command and keeps the code beside it. V8 compiles a function when it is first
 * called, so some commands are run on small images before, whose functions are then in it too.
 */

import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const DIST = fileURLToPath(new URL('../dist', import.meta.url));
const { codeCachePath, compileProgram } = createRequire(import.meta.url)(
  '../dist/load-program.cjs',
);
const cache = codeCachePath(DIST);

const RUNS = [
  ['create', '-q', '-f', 'qcow2', 'a.qcow2', '1M'],
  ['info', 'a.qcow2'],
  ['info', '--output=json', 'a.qcow2'],
  ['convert', '-O', 'qcow2', 'data.raw', 'b.qcow2'],
  ['convert', '-O', 'raw', 'b.qcow2', 'c.raw'],
  ['check', 'b.qcow2'],
  ['map', 'b.qcow2'],
  ['compare', 'b.qcow2', 'c.raw'],
  ['snapshot', '-c', 'first', 'b.qcow2'],
  ['snapshot', '-l', 'b.qcow2'],
];

const directory = mkdtempSync(join(tmpdir(), 'qcow2-build-'));
const here = process.cwd();
try {
  process.chdir(directory);
  writeFileSync('data.raw', Buffer.alloc(4 * 1024 * 1024, 'data'));
  rmSync(cache, { force: true });
  const { script, load } = compileProgram(DIST);
  const { runProgram } = load();
  const errors = [];
  const io = { stdout: () => {}, stderr: (text) => errors.push(text), isTerminal: false };
  for (const argv of RUNS) {
    if ((await runProgram(argv, io)) !== 0) throw new Error(errors.join(''));
  }
  // In one step, for those who start a command meanwhile.
  const temporary = `${cache}.${process.pid}.tmp`;
  writeFileSync(temporary, script.createCachedData());
  renameSync(temporary, cache);
} catch (error) {
  console.error(`cache-code: ${error.message}`);
  process.exitCode = 1;
} finally {
  process.chdir(here);
  rmSync(directory, { recursive: true, force: true });
}
