#!/usr/bin/env node
/**
 * The file that the `qcow2` command starts from: it loads the program (`main.ts`, one file when
 * built) and runs it.
 *
 * Compiling the program takes longer than most commands do, so the build compiles it once and keeps
 * the code (`program.cjs.cache`). V8 takes that back only if it is of the same version and options,
 * and compiles the source otherwise. Both files are CommonJS, which Node loads faster than modules.
 */

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { Script } from 'node:vm';
import type * as program from './main.ts';

/** What the program exports. */
type Program = typeof program;

/** The program, compiled. */
export interface CompiledProgram {
  script: Script;
  /** Runs the program's file, not the command. */
  load: () => Program;
}

/** Where the built program is. */
const PROGRAM = join(__dirname, 'program.cjs');
/** Where the code is that was compiled from it. */
export const CODE_CACHE = `${PROGRAM}.cache`;

/** Compiles the program, or takes the code that was compiled before. */
export function compileProgram(): CompiledProgram {
  // The build escapes whatever is not ASCII.
  const source = readFileSync(PROGRAM, 'latin1');
  const wrapped = `(function (require, module, __filename) {${source}\n})`;
  const script = new Script(wrapped, { filename: PROGRAM, cachedData: readCodeCache() });
  const load = (): Program => {
    const run = script.runInThisContext() as (...values: unknown[]) => void;
    const module = { exports: {} };
    run(createRequire(PROGRAM), module, PROGRAM);
    return module.exports as Program;
  };
  return { script, load };
}

function readCodeCache(): Buffer | undefined {
  try {
    return readFileSync(CODE_CACHE);
  } catch {
    return undefined;
  }
}

if (require.main === module) void compileProgram().load().main();
