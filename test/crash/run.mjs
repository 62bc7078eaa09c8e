/**
 * Tries power cuts for as long as it takes:
 *
 *     node test/crash/run.mjs --seed 1 --points 1000000
 *     node test/crash/run.mjs --scenario 123456        one scenario again
 */

import { join } from 'node:path';
import { importBundled } from '../support/bundled.mjs';

const program = await importBundled(join(import.meta.dirname, 'main.ts'));
process.exitCode = program.main(process.argv.slice(2));
