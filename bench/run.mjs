/**
 * Entry of `npm run bench`: gets ready, bundles the benches (bench/main.ts), which Node cannot run
 * as they are, into a temporary file, and hands over to them.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare, ROOT } from '../tools/prepare.mjs';

const args = process.argv.slice(2);
if (!args.includes('--no-build')) prepare({ types: false });
const { build } = await import('esbuild');

const directory = mkdtempSync(join(tmpdir(), 'qcow2-bench-program-'));
let program;
try {
  const outfile = join(directory, 'bench.mjs');
  await build({
    entryPoints: [join(ROOT, 'bench/main.ts')],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    sourcemap: 'inline',
    logLevel: 'warning',
  });
  program = await import(pathToFileURL(outfile).href);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
process.exitCode = await program.main(args, ROOT);
