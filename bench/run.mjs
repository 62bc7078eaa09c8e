/**
 * Entry of `npm run bench`: bundles the benches (bench/main.ts), which Node cannot run as they
 * are, into a temporary file, and hands over to them.
 */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { build } from 'esbuild';

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)));

/** Time of the last change among files and, below directories, all files. */
function newestChange(...paths) {
  return Math.max(
    0,
    ...paths.map((file) => {
      const stats = statSync(file, { throwIfNoEntry: false });
      if (stats === undefined) return 0;
      if (!stats.isDirectory()) return stats.mtimeMs;
      return newestChange(...readdirSync(file).map((name) => path.join(file, name)));
    }),
  );
}

/** Builds the command unless its last build is newer than everything it is built from. */
function buildCommand() {
  const sources = ['src', 'build.mjs', 'package.json', 'package-lock.json'];
  const changed = newestChange(...sources.map((name) => path.join(root, name)));
  if (newestChange(path.join(root, 'dist', '.build.json')) > changed) return;
  process.stderr.write('bench: building the command\n');
  execFileSync(process.execPath, ['build.mjs', '--fast'], { cwd: root, stdio: ['ignore', 2, 2] });
}

const directory = mkdtempSync(path.join(os.tmpdir(), 'qcow2-bench-program-'));
let main;
try {
  const outfile = path.join(directory, 'bench.mjs');
  await build({
    entryPoints: [path.join(root, 'bench', 'main.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    sourcemap: 'inline',
    logLevel: 'warning',
  });
  ({ main } = await import(pathToFileURL(outfile).href));
} finally {
  rmSync(directory, { recursive: true, force: true });
}
process.exitCode = await main(process.argv.slice(2), root, buildCommand);
