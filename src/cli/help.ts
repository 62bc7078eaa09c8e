/**
 * The text of `--help`, made from the definitions of the commands.
 */

import type { CommandDefinition, OptionDefinition } from './command.ts';
import { QEMU_IMG_COMMANDS } from './qemu-img-commands.ts';

/** How help is shown. */
export interface HelpStyle {
  /** Headings stand out; only for terminals. */
  bold: boolean;
}

/** Columns that help fills. */
const WIDTH = 80;
/** Options whose synopsis is longer than this have their description on the next line. */
const SYNOPSIS_COLUMNS = 26;

const HELP_OPTION: OptionDefinition = { kind: 'flag', short: 'h', description: 'show this help' };

/** Two lines, for a call without a command. */
export function programUsage(): string {
  return 'usage: qcow2 COMMAND [OPTION]… …\nsee: qcow2 --help\n';
}

/** What the program does, and its commands. */
export function programHelp(commands: readonly CommandDefinition[], style: HelpStyle): string {
  const column = Math.max(0, ...commands.map(({ name }) => name.length)) + 2;
  const line = ({ name, summary }: CommandDefinition): string => name.padEnd(column) + summary;
  const isImageCommand = ({ name }: CommandDefinition): boolean => QEMU_IMG_COMMANDS.includes(name);
  return sections(style, [
    ['Usage:', ['qcow2 COMMAND [OPTION]… …']],
    ['', ['Makes, changes, mounts and serves qcow2 disk images.']],
    ['Images (options and output of qemu-img):', commands.filter(isImageCommand).map(line)],
    ['Using them:', commands.filter((command) => !isImageCommand(command)).map(line)],
    [
      'For programs that call qemu-img:',
      [
        'qcow2 qemu-img ARGS…  does what qemu-img ARGS… does, and tells errors in its words;',
        '                      so does a link named qemu-img to this program',
      ],
    ],
    [
      'Everywhere:',
      ['qcow2 COMMAND --help  shows the options of a command, with examples', 'qcow2 --version'],
    ],
  ]);
}

/** A command's synopsis, description, options and examples. */
export function commandHelp(command: CommandDefinition, style: HelpStyle): string {
  const { name, operands, summary, details, options, examples } = command;
  const description = details === undefined ? [summary] : [summary, '', ...wrap(details, WIDTH)];
  return sections(style, [
    ['Usage:', [`qcow2 ${name} [OPTION]… ${operands}`.trimEnd()]],
    ['', description],
    [
      'Options:',
      Object.entries({ ...options, help: HELP_OPTION }).flatMap(([option, definition]) =>
        describeOption(option, definition),
      ),
    ],
    ['Examples:', examples],
  ]);
}

type Section = readonly [heading: string, lines: readonly string[]];

function sections(style: HelpStyle, list: readonly Section[]): string {
  const texts = list.map(([heading, lines]) => {
    if (heading === '') return lines.join('\n');
    const title = style.bold ? `\x1b[1m${heading}\x1b[0m` : heading;
    return [title, ...lines.map((line) => `  ${line}`)].join('\n');
  });
  return `${texts.join('\n\n')}\n`;
}

function describeOption(name: string, option: OptionDefinition): string[] {
  const { kind, short, placeholder = 'VALUE', choices, description } = option;
  const shortForm = short === undefined ? '    ' : `-${short}, `;
  const synopsis = `${shortForm}--${name}${kind === 'flag' ? '' : `=${placeholder}`}`;
  const allowed = choices === undefined ? '' : ` (${choices.join(', ')})`;
  const repeated = kind === 'list' ? '; may be given several times' : '';
  const lines = wrap(description + allowed + repeated, WIDTH - SYNOPSIS_COLUMNS - 4);
  const indent = ' '.repeat(SYNOPSIS_COLUMNS + 2);
  const [first = '', ...others] = lines;
  const rest = others.map((line) => indent + line);
  if (synopsis.length > SYNOPSIS_COLUMNS) return [synopsis, indent + first, ...rest];
  return [synopsis.padEnd(indent.length) + first, ...rest];
}

/** Breaks paragraphs into lines; lines that are indented stay as they are. */
function wrap(text: string, columns: number): string[] {
  return text.split('\n').flatMap((line) => (/^\s/.test(line) ? [line] : wrapLine(line, columns)));
}

function wrapLine(text: string, columns: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > columns) {
      lines.push(line);
      line = word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return [...lines, line];
}
