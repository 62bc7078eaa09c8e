/** `qcow2 mounts`: what is mounted, by whom and since when. */

import { listReports } from '../../worker/fuse-mounts.ts';
import type { MountReport } from '../../worker/fuse-mounts.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';

export const command: CommandDefinition = {
  name: 'mounts',
  summary: 'list what is mounted, by whom and since when',
  operands: '',
  operandCount: [0, 0],
  details: `\
Lists the mounts of this user; for root, those of all users. A dead mount is one whose process is \
gone: the next mount or unmount clears it away. Of an unknown one there is no record.`,
  examples: ['qcow2 mounts', 'qcow2 mounts --output=json'],
  options: {
    output: {
      kind: 'value',
      placeholder: 'FMT',
      description: 'print text or one JSON document',
      choices: ['human', 'json'],
    },
  },
  run,
};

function run(args: ParsedArguments, io: CommandIo): number {
  const output = args.choice('output', ['human', 'json'] as const, 'human');
  const reports = listReports();
  if (output === 'json') io.stdout(`${JSON.stringify(reports.map(toJson), undefined, 4)}\n`);
  else io.stdout(describe(reports));
  return 0;
}

function toJson({ directory, image, status, state }: MountReport): object {
  return {
    directory,
    image,
    status,
    user: state?.user ?? null,
    uid: state?.uid ?? null,
    since: state?.since ?? null,
    pid: state?.pid ?? null,
    channel: state?.channel ?? null,
    access: state?.access ?? null,
    log: state?.log ?? null,
  };
}

function describe(reports: readonly MountReport[]): string {
  if (reports.length === 0) return 'nothing is mounted\n';
  const rows = reports.map(({ directory, image, status, state }) => [
    directory,
    image,
    status,
    state?.user ?? '-',
    state === undefined ? '-' : state.since.replace('T', ' ').slice(0, 16),
    String(state?.pid ?? '-'),
    state?.channel ?? '-',
    state?.access ?? '-',
  ]);
  const all = [
    ['Directory', 'Image', 'State', 'User', 'Since (UTC)', 'Process', 'Channel', 'Access'],
    ...rows,
  ];
  const widths = all[0]!.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  const lines = all.map((row) =>
    row
      .map((cell, column) => cell.replace(/\p{Cc}/gu, '?').padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}
