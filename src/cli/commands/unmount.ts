/** `qcow2 unmount`: ends mounts, and clears away those whose process died. */

import { mountPath } from '../../worker/fuse-directory.ts';
import { cleanStale, listReports, unmount } from '../../worker/fuse-mounts.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { reportError } from '../report.ts';

export const command: CommandDefinition = {
  name: 'unmount',
  summary: 'end a mount',
  operands: 'DIR… | --all',
  operandCount: [0, 1000],
  details: `\
Returns when the mount and the process that served it are gone. A directory that was made by mount \
is removed. A mount that is in use is left as it is, and who uses it is told.`,
  examples: ['qcow2 unmount disk', 'qcow2 unmount --all', 'qcow2 unmount --force /mnt/disk'],
  options: {
    all: { kind: 'flag', short: 'a', description: 'end all mounts of this user' },
    lazy: {
      kind: 'flag',
      short: 'l',
      description: 'take the directory away now; files that are open stay readable',
    },
    force: {
      kind: 'flag',
      short: 'f',
      description: 'end it although it is in use; those who use it get errors',
    },
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const all = args.flag('all');
  if (all === args.operands.length > 0) {
    throw usageError(all ? '--all takes no directories' : 'name a directory, or use --all');
  }
  const how = { lazy: args.flag('lazy'), force: args.flag('force') };
  // Looked up before the dead are cleared away: naming one of them is no error.
  const directories = all ? ownDirectories() : args.operands.map(mountPath);
  const cleaned = new Set(cleanStale());
  let exitCode = 0;
  for (const directory of directories) {
    if (cleaned.has(directory)) continue;
    try {
      const onWait = (reason: string): void => io.stderr(`qcow2: ${directory}: ${reason}\n`);
      await unmount(directory, { ...how, onWait });
    } catch (error) {
      reportError(error, io);
      exitCode = 1;
    }
  }
  return exitCode;
}

function ownDirectories(): string[] {
  const uid = process.geteuid?.() ?? 0;
  return listReports()
    .filter(({ state }) => state?.uid === uid)
    .map(({ directory }) => directory);
}
