#!/usr/bin/env node
/**
 * The entry point of the `qcow2` command.
 */

import { basename } from 'node:path';
import { reportError } from './report.ts';
import { runProgram } from './program.ts';
import { processIo } from './process-io.ts';

process.on('uncaughtException', (error) => {
  reportError(error, processIo);
  process.exit(1);
});

// All output is written synchronously, so nothing is lost by exiting here.
process.exit(await runProgram([...standIn(process.argv[1]), ...process.argv.slice(2)], processIo));

/** Through a link named `qemu-img` this is qemu-img. */
function standIn(path: string | undefined): string[] {
  return path !== undefined && basename(path) === 'qemu-img' ? ['qemu-img'] : [];
}
