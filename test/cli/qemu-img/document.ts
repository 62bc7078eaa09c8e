/** The tables as `src/cli/QEMU-IMG.md`. */

import type { OptionRow, Subcommand } from './model.ts';

const INTRODUCTION = `# qemu-img's options

Every option of qemu-img 7.2, hidden ones included, and what became of it in the \`qcow2\` command:

- **same**: the same calls do the same: exit code, output, and the image that they leave behind.
- **better**: they do, and there is more to it, or a rare case is treated with more care.
- **refused**: an error in one line that names the reason.

Wrong values end with the same exit codes, whatever the state; the messages are this program's own. What the commands
take beside these options, \`--help\` tells.

This file is made from the tables in \`test/cli/qemu-img\`, whose calls \`test/cli/qemu-img-options.test.ts\` makes to
both programs, and which have to name all that \`qemu-img --help\` and \`-o help\` do. Change it there, and write it with
\`npx vitest run test/cli/qemu-img-options.test.ts -u\`.
`;

/** A part of the document. */
export interface DocumentPart {
  title: string;
  subcommand: Subcommand;
}

/** The whole document. */
export function documentOf(parts: readonly DocumentPart[]): string {
  return [INTRODUCTION, ...parts.map(partOf)].join('\n');
}

function partOf({ title, subcommand }: DocumentPart): string {
  const head = [`## ${title}`, '', '| option | here | |', '| --- | --- | --- |'];
  return `${[...head, ...subcommand.rows.map(rowOf)].join('\n')}\n`;
}

function rowOf({ names, state, remark = '' }: OptionRow): string {
  const isPhrase = names[0]?.startsWith('(') === true;
  const title = isPhrase ? names.join(' ').slice(1, -1) : names.map((n) => `\`${n}\``).join(', ');
  return `| ${title} | ${state} | ${remark.replaceAll('|', '\\|')} |`.replace('|  |', '| |');
}
