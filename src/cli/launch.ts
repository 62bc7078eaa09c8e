#!/usr/bin/env node
/**
 * The file that the `qcow2` command starts from. It and the program are built as CommonJS, which Node
 * loads faster than modules.
 */

import { compileProgram } from './load-program.ts';

void compileProgram(__dirname).load().main();
