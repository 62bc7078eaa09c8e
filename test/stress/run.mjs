/**
 * Uses writable mounts hard for as long as it takes, as root:
 *
 *     node test/stress/run.mjs --seed 1 --seconds 600
 *     node test/stress/run.mjs --round 123456          one round again
 *     node test/stress/run.mjs --mounts 200            many mounts at once
 *     node test/stress/run.mjs --soak --seconds 600    a 1 TiB image, and the memory it takes
 *     node test/stress/run.mjs --build                 builds of this package on a filesystem
 *
 * The command must have been built.
 */

import { join } from 'node:path';
import { importBundled } from '../support/bundled.mjs';

const program = await importBundled(join(import.meta.dirname, 'main.ts'));
process.exitCode = await program.main(process.argv.slice(2));
