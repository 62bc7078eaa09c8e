/**
 * What is wrong with a call, and what a command refuses to do, in the words of qemu-img 7.2. Our own
 * words are recognized by their beginnings; a test holds both programs against each other.
 */

import type { Qcow2Error } from '../errors.ts';
import type { QemuCall, QemuMessage } from './qemu-img-errors.ts';

/** What qemu-img says where ours matches; for some commands only. */
interface Rule {
  commands?: readonly string[];
  ours: RegExp;
  /** Capture groups of `ours` by number, the call by name: see {@link fill}. */
  theirs: string;
  triesHelp?: true;
  exitCode?: number;
}

const SUFFIXES = [
  'You may use k, M, G, T, P or E suffixes for',
  'qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.',
].join('\n');

/** What has an operand too few or too many. */
const OPERANDS: Readonly<Record<string, { text: string; triesHelp: boolean }>> = {
  amend: { text: 'Expecting one image file name', triesHelp: false },
  bitmap: { text: 'Expecting filename and bitmap name', triesHelp: false },
  compare: { text: 'Expecting two image file names', triesHelp: true },
  convert: { text: 'Must specify image file name', triesHelp: false },
  create: { text: 'Expecting image file name', triesHelp: true },
  dd: { text: 'Must specify both input and output files', triesHelp: false },
  measure: { text: 'At most one filename argument is allowed.', triesHelp: false },
  resize: { text: 'Not enough arguments', triesHelp: true },
};
const ONE_OPERAND = { text: 'Expecting one image file name', triesHelp: true };

/** The first that matches counts. */
const RULES: readonly Rule[] = [
  {
    commands: ['amend'],
    ours: /^say what to change/,
    theirs: 'Must specify options (-o)',
    triesHelp: true,
  },
  {
    commands: ['amend'],
    ours: /^there is no option '(.*)' to amend/,
    theirs: "Invalid parameter '$1'",
  },
  {
    commands: ['amend'],
    ours: /^-o compat must be one of .* not '(.*)'$/,
    theirs: 'Unknown compatibility level $1',
  },
  {
    ours: /^a raw image has nothing to amend/,
    theirs: "Format driver 'raw' does not support option amendment",
  },
  {
    commands: ['bitmap'],
    ours: /^there is no bitmap '(.*)'$/,
    theirs: "Operation {action} on bitmap $1 failed: Dirty bitmap '$1' not found",
  },
  { ours: /^say what to copy, and where/, theirs: 'Must specify both input and output files' },
  { ours: /^unknown operand '([^=']*)/, theirs: 'unrecognized operand $1' },
  {
    commands: ['bench'],
    ours: /^(?:-c|--count) must be/,
    theirs: 'Invalid request count specified',
  },
  { commands: ['bench'], ours: /^(?:-d|--depth) must be/, theirs: 'Invalid queue depth specified' },
  { ours: /^unknown option (\S+?)(?:;|$)/, theirs: "unrecognized option '$1'", triesHelp: true },
  { ours: /^(\S+) needs a value/, theirs: "missing argument for option '$1'", triesHelp: true },
  {
    commands: ['create'],
    ours: /^unexpected argument '(.*)'/,
    theirs: 'Unexpected argument: $1',
    triesHelp: true,
  },
  {
    ours: /^--output must be one of/,
    theirs: '--output must be used with human or json as argument.',
  },
  { commands: ['bench'], ours: /^(?:-t|--cache) must be one of/, theirs: 'Invalid cache mode' },
  {
    ours: /^(?:-T|--source-cache) must be one of .* not '(.*)'$/,
    theirs: 'Invalid source cache option: $1',
  },
  { ours: /^(?:-t|--cache) must be one of .* not '(.*)'$/, theirs: 'Invalid cache option: $1' },
  {
    ours: /^(?:-r|--repair) must be one of .* not '(.*)'$/,
    theirs: "Unknown option value for -r (expecting 'leaks' or 'all'): $1",
    triesHelp: true,
  },
  {
    ours: /^--preallocation must be one of .* not '(.*)'$/,
    theirs: "Invalid preallocation mode '$1'",
  },
  {
    commands: ['create'],
    ours: /^(?:-f|--format) must be one of .* not '(.*)'$/,
    theirs: "{image}: Unknown file format '$1'",
  },
  {
    commands: ['dd'],
    ours: /^(?:-O|--output-format) must be one of .* not '(.*)'$/,
    theirs: 'Unknown file format',
  },
  {
    ours: /^(?:-O|--output-format) must be one of .* not '(.*)'$/,
    theirs: "Unknown file format '$1'",
  },
  {
    commands: ['rebase'],
    ours: /^(?:-F|--new-format) must be one of .* not '(.*)'$/,
    theirs: "Invalid format name: '$1'",
  },
  {
    commands: ['compare'],
    ours: /^(?:-F|--second-format) must be one of .* not '(.*)'$/,
    theirs: "Could not open '{second}': Unknown driver '$1'",
    exitCode: 2,
  },
  {
    commands: ['compare'],
    ours: /^(?:-f|--format) must be one of .* not '(.*)'$/,
    theirs: "Could not open '{image}': Unknown driver '$1'",
    exitCode: 2,
  },
  {
    ours: /^(?:-f|--format) must be one of .* not '(.*)'$/,
    theirs: "Could not open '{image}': Unknown driver '$1'",
  },
  {
    commands: ['resize'],
    ours: /^the size '.*' is not a size/,
    theirs: [
      "Parameter 'size' expects a non-negative number below 2^64",
      'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-',
      'and exabytes, respectively.',
    ].join('\n'),
  },
  { ours: /^the size '.*' is not a size/, theirs: `Invalid image size specified. ${SUFFIXES}` },
  {
    ours: /^the start offset '.*' is not a size/,
    theirs: `Invalid start offset specified. ${SUFFIXES}`,
  },
  { ours: /^the length '.*' is not a size/, theirs: `Invalid max length specified. ${SUFFIXES}` },
  {
    ours: /^the rate(?: limit)? '.*' is not a size/,
    theirs: `Invalid rate limit specified. ${SUFFIXES}`,
  },
  {
    ours: /^(?:the )?(granularity|bs|buffer size|step size|offset) '.*' is not a size/,
    theirs: `Invalid $1 specified. ${SUFFIXES}`,
  },
  {
    commands: ['convert'],
    ours: /^the sparse size '.*' is not a size/,
    theirs: `Invalid buffer size for sparse output specified. ${SUFFIXES}`,
  },
  {
    commands: ['convert'],
    ours: /^-S must be|^the sparse size /,
    theirs:
      'Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to ' +
      '16777216. Select 0 to disable sparse detection (fully allocates output).',
  },
  { ours: /^a new image needs a size/, theirs: '{image}: Image creation needs a size parameter' },
  {
    commands: ['create'],
    ours: /^the backing format '(.*)' is not read here/,
    theirs: "{image}: Unknown driver '$1'\nCould not open backing image.",
  },
  { ours: /^a \S+ image has no option '(.*)'/, theirs: "{made}Invalid parameter '$1'" },
  {
    ours: /^the cluster size must be/,
    theirs: '{making}Cluster size must be a power of two between 512 and 2048k',
  },
  {
    ours: /^-o compat must be one of .* not '(.*)'$/,
    theirs: "{making}Parameter 'version' does not accept value '$1'",
  },
  {
    ours: /^-o (\w+) must be one of .* not '(.*)'$/,
    theirs: "{making}Parameter '$1' does not accept value '$2'",
  },
  {
    ours: /^a raw image has no backing file/,
    theirs: "{made}Backing file not supported for file format 'raw'",
  },
  {
    ours: /^the output has \d+ bytes, fewer/,
    theirs: 'output file is smaller than input file',
  },
  {
    ours: /^making the disk smaller deletes/,
    theirs: [
      'Use the --shrink option to perform a shrink operation.',
      'qemu-img: warning: Shrinking an image will delete all data beyond the shrunken ' +
        "image's end. Before performing such an operation, make sure there is no important data " +
        'there.',
    ].join('\n'),
  },
  { ours: /^the new size must be positive/, theirs: 'New image size must be positive' },
  {
    ours: /^-m must be/,
    theirs: 'Invalid number of coroutines. Allowed number of coroutines is between 1 and 16',
  },
  { ours: /^--target-is-zero requires -n/, theirs: '--target-is-zero requires use of -n flag' },
  { ours: /^-c is for -O qcow2/, theirs: 'Compression not supported for this file format' },
  {
    ours: /^there is no '(.*)' in its backing chain/,
    theirs: "Did not find '$1' in the backing chain of '{image}'",
  },
  { ours: /^it has no backing file to commit to/, theirs: 'Image does not have a backing file' },
  {
    commands: ['rebase'],
    ours: /^say what the new backing file is/,
    theirs: 'Must specify backing file (-b) or use unsafe mode (-u)',
    triesHelp: true,
  },
  {
    commands: ['rebase'],
    ours: /^the format of the new backing file is not given/,
    theirs: "Could not change the backing file to '{backing}': backing format must be specified",
  },
  {
    commands: ['rebase'],
    ours: /^a raw image cannot have a backing file/,
    theirs: "Could not change the backing file to '{backing}': Operation not supported",
  },
  {
    commands: ['snapshot'],
    ours: /^only one of -l, -a, -c and -d/,
    theirs: "Cannot mix '-l', '-a', '-c', '-d'",
    triesHelp: true,
  },
  {
    commands: ['snapshot'],
    ours: /^there is no snapshot named '(.*)'$/,
    theirs: "Could not delete snapshot '$1': snapshot not found",
  },
  {
    commands: ['snapshot'],
    ours: /^there is no snapshot '(.*)'$/,
    theirs: "Could not apply snapshot '$1': Failed to load snapshot: No such file or directory",
  },
  {
    commands: ['convert', 'measure'],
    ours: /^there is no snapshot '/,
    theirs: "Failed to load snapshot: Can't find snapshot",
  },
  {
    commands: ['measure'],
    ours: /^give an image, or --size/,
    theirs: 'Either --size N or one filename must be specified.',
  },
  {
    commands: ['measure'],
    ours: /^give --size or an image, not both/,
    theirs: '--size N cannot be used together with a filename.',
  },
];

const BITMAP_ACTIONS = ['add', 'remove', 'clear', 'enable', 'disable', 'merge'];

/** What is missing where nothing is said of what to do, which is told before the operands. */
function missingAction({ command, values }: QemuCall): QemuMessage | undefined {
  if (command === 'bitmap' && !BITMAP_ACTIONS.some((action) => values.has(action))) {
    const text = 'Need at least one of --add, --remove, --clear, --enable, --disable, or --merge';
    return { lines: [text], exitCode: 1 };
  }
  if (command !== 'amend' || values.has('options')) return undefined;
  return { lines: ['Must specify options (-o)'], triesHelp: true, exitCode: 1 };
}

/** What qemu-img says of an error in how a command was called; undefined for other errors. */
export function callError(error: Qcow2Error, call: QemuCall): QemuMessage | undefined {
  const { problem } = error;
  if (problem.startsWith('expected ') || problem.startsWith('unexpected argument ')) {
    const isTooMany = call.command === 'create' && problem.startsWith('unexpected');
    const { text, triesHelp } = operandsOf(call);
    if (!isTooMany) return missingAction(call) ?? { lines: [text], triesHelp, exitCode: 1 };
  }
  if (/^(?:-f|--format) must be one of/.test(problem) && call.operands.length === 0) {
    return { lines: [operandsOf(call).text], triesHelp: operandsOf(call).triesHelp, exitCode: 1 };
  }
  for (const { commands, ours, theirs, triesHelp, exitCode } of RULES) {
    if (commands?.includes(call.command) === false) continue;
    const match = ours.exec(problem);
    if (match !== null)
      return { lines: fill(theirs, match, call).split('\n'), triesHelp, exitCode };
  }
  return undefined;
}

function operandsOf({ command }: QemuCall) {
  return OPERANDS[command] ?? ONE_OPERAND;
}

/** What stands before an error of making an image. */
function makingPrefix({ command, operands, values }: QemuCall): string {
  if (command === 'create') return `${operands[0]}: `;
  const format = values.get('output-format') ?? 'raw';
  return command === 'convert' ? `${operands.at(-1)}: error while converting ${format}: ` : '';
}

function fill(text: string, match: RegExpExecArray, call: QemuCall): string {
  const { command, operands, values } = call;
  const [image = '', second = ''] = operands;
  const names: Readonly<Record<string, string>> = {
    // Operands of dd begin with what they are.
    image: command === 'dd' ? image.replace(/^if=/, '') : image,
    second,
    action: BITMAP_ACTIONS.find((action) => values.has(action)) ?? '',
    backing: values.get('backing') ?? '',
    made: command === 'create' ? `${image}: ` : '',
    making: makingPrefix(call),
  };
  return text
    .replace(/\$(\d)/g, (_, group: string) => match[Number(group)] ?? '')
    .replace(/\{(\w+)\}/g, (_, name: string) => names[name] ?? '');
}
