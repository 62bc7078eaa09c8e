/**
 * Loading the program (`main.ts`), which is one file when it is built.
 *
 * Compiling it takes longer than most commands do, so the build compiles it once and keeps the code
 * (`program.cjs.cache`). V8 takes that back only if it is of the same version and options, and
 * compiles the source otherwise.
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

/** Where the code is that was compiled from the program. */
export function codeCachePath(directory: string): string {
  return join(directory, 'program.cjs.cache');
}

/**
 * Compiles the program, or takes the code that was compiled before.
 * @param directory where it was built
 */
export function compileProgram(directory: string): CompiledProgram {
  const filename = join(directory, 'program.cjs');
  // The build escapes whatever is not ASCII.
  const source = readFileSync(filename, 'latin1');
  const wrapped = `(function (require, module, __filename) {${source}\n})`;
  const cachedData = readIfThere(codeCachePath(directory));
  const script = new Script(wrapped, { filename, cachedData });
  const load = (): Program => {
    const run = script.runInThisContext() as (...values: unknown[]) => void;
    const module = { exports: {} };
    run(createRequire(filename), module, filename);
    return module.exports as Program;
  };
  return { script, load };
}

function readIfThere(path: string): Buffer | undefined {
  try {
    return readFileSync(path);
  } catch {
    return undefined;
  }
}
