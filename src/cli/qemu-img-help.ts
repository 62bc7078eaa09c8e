/** What the drop-in says of itself: `qemu-img --version` and `qemu-img --help`. */

import { IMAGE_FORMATS } from '../chain/open.ts';
import type { CommandDefinition, OptionDefinition } from './command.ts';

/** Set by the bundler to the version of package.json. */
declare const __QCOW2_VERSION__: string;

/** The version of qemu-img whose grammar and output the commands have. */
const QEMU_VERSION = '7.2.0';

/** The version: programs take it from the first line. */
export function qemuImgVersion(): string {
  return (
    `qemu-img version ${QEMU_VERSION} (qcow2 ${__QCOW2_VERSION__})\n` +
    'The image commands of qcow2, in place of those of qemu-img. QEMU is not part of it.\n'
  );
}

/** The help: programs look in it for options and formats that they want to use. */
export function qemuImgHelp(commands: readonly CommandDefinition[]): string {
  const lines = [
    'usage: qemu-img [standard options] command [command options]',
    '',
    "    '-h', '--help'       display this help and exit",
    "    '-V', '--version'    output version information and exit",
    "    '-T', '--trace'      accepted; there is nothing to trace",
    '',
    'Command syntax:',
    ...commands.map(syntaxOf),
    '',
    'The options of each command are explained by: qcow2 COMMAND --help',
    '',
    `Supported formats: ${IMAGE_FORMATS.join(' ')} file host_device`,
  ];
  return `${qemuImgVersion()}${lines.join('\n')}\n`;
}

/** A command in one line, with its options as they are mostly written. */
function syntaxOf({ name, operands, options }: CommandDefinition): string {
  const parts = Object.entries(options).map(([option, definition]) =>
    optionSyntax(option, definition),
  );
  return `  ${[name, ...parts, operands].join(' ')}`;
}

function optionSyntax(name: string, { kind, short, placeholder = 'VALUE' }: OptionDefinition) {
  const shown = short === undefined ? `--${name}` : `-${short}`;
  if (kind === 'flag') return `[${shown}]`;
  return short === undefined ? `[${shown}=${placeholder}]` : `[${shown} ${placeholder}]`;
}
