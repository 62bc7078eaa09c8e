/**
 * The `qcow2` command as a function of its arguments. `launch.ts` starts it.
 */

import { basename } from 'node:path';
import { processIo } from './process-io.ts';
import { runProgram } from './program.ts';
import { reportError } from './report.ts';

export { runProgram };

/** Runs this process's command, and ends the process with its exit code. */
export async function main(): Promise<never> {
  process.on('uncaughtException', (error) => {
    reportError(error, processIo);
    process.exit(1);
  });
  const argv = [...standIn(process.argv[1]), ...process.argv.slice(2)];
  // All output is written synchronously, so nothing is lost by exiting here.
  process.exit(await runProgram(argv, processIo));
}

/** Through a link named `qemu-img` this is qemu-img. */
function standIn(path: string | undefined): string[] {
  return path !== undefined && basename(path) === 'qemu-img' ? ['qemu-img'] : [];
}
