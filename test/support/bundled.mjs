/** Runs a program of the tests, which Node cannot run as it is: bundles it into one file first. */

import { mkdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';

/** Bundles a TypeScript file, and imports it. Returns what it exports. */
export async function importBundled(entryPoint) {
  // Inside the repository, where packages are found that are loaded when they are needed.
  const directory = join(import.meta.dirname, '../.cache');
  mkdirSync(directory, { recursive: true });
  const outfile = join(directory, `${basename(dirname(entryPoint))}-${process.pid}.mjs`);
  try {
    await build({
      entryPoints: [entryPoint],
      outfile,
      bundle: true,
      platform: 'node',
      format: 'esm',
      target: 'node20',
      packages: 'external',
      logLevel: 'warning',
    });
    return await import(pathToFileURL(outfile).href);
  } finally {
    rmSync(outfile, { force: true });
  }
}
