/**
 * Uses writable mounts hard for as long as it takes, as root:
 *
 *     node test/stress/run.mjs --seed 1 --seconds 600
 *     node test/stress/run.mjs --round 123456          one round again
 *     node test/stress/run.mjs --mounts 200            many mounts at once
 *
 * Bundles the program (main.ts), which Node cannot run as it is, into one file. The command must
 * have been built.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

// Inside the repository, where packages are found that are loaded when they are needed.
const directory = join(import.meta.dirname, '../.cache');
mkdirSync(directory, { recursive: true });
const outfile = join(directory, `stress-${process.pid}.mjs`);
let program;
try {
  await build({
    entryPoints: [join(import.meta.dirname, 'main.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    packages: 'external',
    logLevel: 'warning',
  });
  program = await import(pathToFileURL(outfile).href);
} finally {
  rmSync(outfile, { force: true });
}
process.exitCode = await program.main(process.argv.slice(2));
