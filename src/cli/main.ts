#!/usr/bin/env node
/**
 * The entry point of the `qcow2` command.
 */

import { reportError } from './report.ts';
import { runProgram } from './program.ts';
import { processIo } from './process-io.ts';

process.on('uncaughtException', (error) => {
  reportError(error, processIo);
  process.exit(1);
});

// All output is written synchronously, so nothing is lost by exiting here.
process.exit(await runProgram(process.argv.slice(2), processIo));
