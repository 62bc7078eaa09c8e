/** Runs one command that takes long, as the program would: the process that tests kill. */

import { parseCommandLine } from '../../src/cli/command.ts';
import { command as commit } from '../../src/cli/commands/commit.ts';
import { command as convert } from '../../src/cli/commands/convert.ts';
import { command as rebase } from '../../src/cli/commands/rebase.ts';
import { processIo } from '../../src/cli/process-io.ts';
import { reportError } from '../../src/cli/report.ts';

const [name, ...args] = process.argv.slice(2);
const command = [commit, convert, rebase].find((candidate) => candidate.name === name);
if (command === undefined) throw new Error(`there is no command ${name}`);
try {
  process.exitCode = await command.run(parseCommandLine(command, args), processIo);
} catch (error) {
  reportError(error, processIo);
  process.exitCode = 1;
}
