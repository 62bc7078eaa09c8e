/**
 * Builds `dist/`: the library, the command and the entry points of worker threads, bundled with
 * esbuild and split so that each command loads only what it uses, and the type declarations.
 *
 *     node build.mjs           everything that is published
 *     node build.mjs --fast    without the type declarations
 */

import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const ROOT = dirname(fileURLToPath(import.meta.url));
const DIST = join(ROOT, 'dist');

/** Source files by the name of the bundle made from each. */
function entryPoints() {
  const candidates = {
    index: 'src/index.ts',
    promises: 'src/promises.ts',
  };
  const workers = join(ROOT, 'src/worker');
  for (const file of existsSync(workers) ? readdirSync(workers).sort() : []) {
    const name = /^entry-(.+)\.ts$/.exec(file)?.[1];
    if (name !== undefined) candidates[name] = `src/worker/${file}`;
  }
  const present = Object.entries(candidates).filter(([, file]) => existsSync(join(ROOT, file)));
  return Object.fromEntries(present);
}

/** Options of all bundles. */
function commonOptions() {
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  return {
    absWorkingDir: ROOT,
    outdir: DIST,
    bundle: true,
    platform: 'node',
    target: 'node20.19',
    external: ['koffi', 'fuse-native'],
    define: { __QCOW2_VERSION__: JSON.stringify(version) },
    // Whitespace and syntax only: names stay, for stack traces that can be read.
    minifyWhitespace: true,
    minifySyntax: true,
    legalComments: 'eof',
    write: false,
    logLevel: 'warning',
  };
}

/** The library and the entry points of threads, as modules. */
function buildModules() {
  return build({
    ...commonOptions(),
    entryPoints: entryPoints(),
    // Chunks lie beside the entry points: `new URL('./NAME.js', import.meta.url)` finds a worker's
    // entry point from whichever chunk the call ended up in.
    chunkNames: '[name]-[hash]',
    splitting: true,
    format: 'esm',
    charset: 'utf8',
  });
}

/** The command, which starts a third faster as CommonJS; see src/cli/load-program.ts. */
function buildCommand() {
  const options = commonOptions();
  return build({
    ...options,
    entryPoints: {
      cli: 'src/cli/launch.ts',
      program: 'src/cli/main.ts',
      'load-program': 'src/cli/load-program.ts',
    },
    format: 'cjs',
    outExtension: { '.js': '.cjs' },
    // launch.ts reads the program as Latin-1.
    charset: 'ascii',
    // Everything is in one file, of which each command runs its own part.
    supported: { 'dynamic-import': false },
    banner: {
      js: "'use strict'; const __moduleUrl = require('node:url').pathToFileURL(__filename).href;",
    },
    define: { ...options.define, 'import.meta.url': '__moduleUrl' },
  });
}

async function bundle() {
  const results = await Promise.all([buildModules(), buildCommand()]);
  const outputFiles = results.flatMap((result) => result.outputFiles);
  mkdirSync(DIST, { recursive: true });
  for (const { path, contents } of outputFiles) replaceFile(path, contents);
  chmodSync(join(DIST, 'cli.cjs'), 0o755);
  const built = new Set(outputFiles.map(({ path }) => basename(path)));
  for (const file of readdirSync(DIST)) {
    if (/\.c?js$/.test(file) && !built.has(file)) rmSync(join(DIST, file));
  }
  cacheCode();
}

/** Keeps the code of the command, compiled; without it the command starts a little slower. */
function cacheCode() {
  const { status } = spawnSync(process.execPath, [join(ROOT, 'tools/cache-code.mjs')], {
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error('the code of the command could not be compiled (see above)');
  // Of use to that script alone: cli.cjs has it in itself.
  rmSync(join(DIST, 'load-program.cjs'));
}

/** Replaces a file in one step, so that a program that starts meanwhile finds the old or the new. */
function replaceFile(path, contents) {
  if (existsSync(path) && readFileSync(path).equals(contents)) return;
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, contents);
  renameSync(temporary, path);
}

function declareTypes() {
  const tsc = join(ROOT, 'node_modules/typescript/bin/tsc');
  rmSync(join(DIST, 'types'), { recursive: true, force: true });
  const { status } = spawnSync(process.execPath, [tsc, '-p', 'tsconfig.build.json'], {
    cwd: ROOT,
    stdio: 'inherit',
  });
  if (status !== 0) throw new Error('the type declarations could not be made (see above)');
}

/** Says when the build was done and with what; `tools/prepare.mjs` compares it with the sources. */
function writeStamp(fast) {
  writeFileSync(join(DIST, '.build.json'), JSON.stringify({ types: !fast }));
}

const fast = process.argv.includes('--fast');
try {
  await bundle();
  if (!fast && existsSync(join(ROOT, 'src/index.ts'))) declareTypes();
  writeStamp(fast);
} catch (error) {
  console.error(`build: ${error instanceof Error ? error.message : String(error)}`);
  process.exitCode = 1;
}
