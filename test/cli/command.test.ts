import { describe, expect, it } from 'vitest';
import { nearestName, parseCommandLine } from '../../src/cli/command.ts';
import type { CommandDefinition } from '../../src/cli/command.ts';
import { commandHelp } from '../../src/cli/help.ts';

const command: CommandDefinition = {
  name: 'sample',
  summary: 'does something',
  operands: 'IMAGE [DIR]',
  operandCount: [1, 2],
  details: 'A paragraph that is long enough to be broken into two lines, as it has many words.',
  examples: ['qcow2 sample a.qcow2'],
  options: {
    force: { kind: 'flag', short: 'U', description: 'read past locks' },
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FMT',
      description: 'format',
      choices: ['qcow2', 'raw'],
    },
    tag: { kind: 'list', short: 't', description: 'a tag' },
    'a-very-long-option-name': { kind: 'value', description: 'what it does' },
  },
  run: () => 0,
};

const parse = (...argv: string[]) => parseCommandLine(command, argv);

describe('parseCommandLine', () => {
  it('takes options before, between and after the operands', () => {
    const args = parse('-U', 'image', '--format=raw', 'dir', '-t', 'a', '--tag', 'b');
    expect(args.operands).toEqual(['image', 'dir']);
    expect(args.flag('force')).toBe(true);
    expect(args.value('format')).toBe('raw');
    expect(args.list('tag')).toEqual(['a', 'b']);
  });

  it('takes short options together and values that stick to them', () => {
    const args = parse('-Ufraw', 'image');
    expect([args.flag('force'), args.value('format')]).toEqual([true, 'raw']);
  });

  it('takes what stands behind -- as operands', () => {
    expect(parse('--', '--format', '-U').operands).toEqual(['--format', '-U']);
  });

  it('lets the last value count', () => {
    expect(parse('-f', 'raw', '-f', 'qcow2', 'image').value('format')).toBe('qcow2');
  });

  it('knows nothing of options that were not given', () => {
    const args = parse('image');
    expect([args.flag('force'), args.value('format'), args.list('tag')]).toEqual([
      false,
      undefined,
      [],
    ]);
    expect(args.choice('format', ['qcow2', 'raw'], 'qcow2')).toBe('qcow2');
  });

  it.each([
    [['--fromat=raw', 'a'], 'unknown option --fromat; did you mean --format?'],
    [['-z', 'a'], 'unknown option -z'],
    [['--constructor', 'a'], 'unknown option --constructor'],
    [['a', '--format'], '--format needs a value (FMT)'],
    [['--format=vmdk', 'a'], "--format must be one of qcow2, raw, not 'vmdk'"],
    [['--force=yes', 'a'], '--force takes no value'],
    [[], 'expected IMAGE [DIR]; see: qcow2 sample --help'],
    [['a', 'b', 'c'], "unexpected argument 'c'"],
  ])('refuses %j', (argv, message) => {
    expect(() => parse(...argv)).toThrow(
      expect.objectContaining({ code: 'INVALID_OPTION', message }),
    );
  });
});

describe('nearestName', () => {
  it('forgives a few wrong, missing or swapped letters, and no more', () => {
    const names = ['info', 'map', 'unmount', 'mounts'];
    expect(nearestName('ifno', names)).toBe('info');
    expect(nearestName('umount', names)).toBe('unmount');
    expect(nearestName('mount', names)).toBe('mounts');
    expect(nearestName('resize', names)).toBeUndefined();
  });
});

describe('commandHelp', () => {
  it('shows usage, description, options and examples', () => {
    expect(commandHelp(command, { bold: false })).toBe(`Usage:
  qcow2 sample [OPTION]… IMAGE [DIR]

does something

A paragraph that is long enough to be broken into two lines, as it has many
words.

Options:
  -U, --force                 read past locks
  -f, --format=FMT            format (qcow2, raw)
  -t, --tag=VALUE             a tag; may be given several times
      --a-very-long-option-name=VALUE
                              what it does
  -h, --help                  show this help

Examples:
  qcow2 sample a.qcow2
`);
  });

  it('has headings that stand out on a terminal', () => {
    expect(commandHelp(command, { bold: true })).toMatch(/^\x1b\[1mUsage:\x1b\[0m\n/);
  });
});
