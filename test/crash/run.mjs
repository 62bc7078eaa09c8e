/**
 * Tries power cuts for as long as it takes:
 *
 *     node test/crash/run.mjs --seed 1 --points 1000000
 *     node test/crash/run.mjs --scenario 123456        one scenario again
 *
 * Bundles the program (main.ts), which Node cannot run as it is, into one file.
 */

import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

// Inside the repository, where packages are found that are loaded when they are needed.
const directory = join(import.meta.dirname, '../.cache');
mkdirSync(directory, { recursive: true });
const outfile = join(directory, `crash-${process.pid}.mjs`);
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
process.exitCode = program.main(process.argv.slice(2));
