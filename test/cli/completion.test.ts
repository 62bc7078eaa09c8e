/** `qcow2 completion`: what the shells themselves make of the scripts. */

import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { COMMAND_NAMES, loadAllCommands, loadCommand } from '../../src/cli/commands.ts';
import { describePeers } from '../support/peers.ts';
import { run } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';

async function script(shell: string): Promise<string> {
  const command = await loadCommand('completion');
  const { exitCode, stdout, stderr } = await runCommand(command!, [shell]);
  expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
  return stdout;
}

const scripts = sharedTemporaryDirectory();
const directory = sharedTemporaryDirectory();
mkdirSync(join(directory, 'images'));
const FILES = ['disk.qcow2', 'disk two.qcow2', 'images/base.raw', 'part1.raw', 'part[1].raw'];
for (const name of FILES) {
  writeFileSync(join(directory, name), '');
}

describe('qcow2 completion', () => {
  it.each(['bash', 'zsh', 'fish'])(
    'for %s tells of every command and every option',
    async (shell) => {
      const text = await script(shell);
      for (const { name, options } of await loadAllCommands()) {
        expect(text).toContain(name);
        for (const option of Object.keys(options)) {
          expect(text).toContain(shell === 'fish' ? `-l ${option}` : `--${option}`);
        }
      }
    },
  );

  it('is for three shells', async () => {
    const command = await loadCommand('completion');
    const { exitCode, stderr } = await runCommand(command!, ['tcsh']);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: "qcow2: there is completion for bash, zsh, fish, not for 'tcsh'\n",
    });
  });
});

/** The script as a file. */
async function scriptFile(shell: string): Promise<string> {
  const path = join(scripts, `completion.${shell}`);
  if (!existsSync(path)) writeFileSync(path, await script(shell));
  return path;
}

/** A line, and what it can go on with: all of it, or some that are and some that are not. */
interface Case {
  line: string;
  exactly?: string[];
  some?: string[];
  none?: string[];
}

const CASES: Case[] = [
  { line: 'qcow2 ', some: [...COMMAND_NAMES, 'qemu-img'] },
  { line: 'qcow2 me', exactly: ['measure'] },
  { line: 'qcow2 qemu-img me', exactly: ['measure'] },
  { line: 'qcow2 qemu-img mo', exactly: [] },
  { line: 'qcow2 help un', exactly: ['unmount'] },
  { line: 'qcow2 info -f ', exactly: ['qcow2', 'raw'] },
  { line: 'qcow2 qemu-img info -f q', exactly: ['qcow2'] },
  { line: 'qcow2 convert -p -O ra', exactly: ['raw'] },
  { line: 'qcow2 create -f qcow2 -o comp', some: ['compression_type='], none: ['cluster_size='] },
  { line: 'qcow2 completion ', exactly: ['bash', 'fish', 'zsh'] },
  { line: 'qcow2 info disk.q', exactly: ['disk.qcow2'] },
  { line: 'qcow2 create -b images/b', exactly: ['images/base.raw'] },
  { line: 'qcow2 measure --size ', exactly: [] },
];

/** Compares without the description and the sign of a value that some shells add. */
function expectCompletions(
  found: readonly string[],
  { exactly, some = [], none = [] }: Case,
): void {
  if (exactly !== undefined) expect([...found].sort()).toEqual([...exactly].sort());
  for (const word of some) expect(found).toContain(word);
  for (const word of none) expect(found).not.toContain(word);
}

describePeers(['bash'], 'in bash', () => {
  /** What bash offers for a line, at its end. */
  async function complete(line: string): Promise<string[]> {
    const program = `
      source "$1"
      COMP_LINE=$2 COMP_POINT=\${#2}
      COMP_WORDBREAKS=$' \\t\\n"'"'"'><=;|&(:'
      _qcow2 qcow2
      ((\${#COMPREPLY[@]} == 0)) || printf '%s\\n' "\${COMPREPLY[@]}"
    `;
    const args = ['--norc', '--noprofile', '-c', program, 'bash', await scriptFile('bash'), line];
    const text = run('bash', args, { cwd: directory });
    return text.split('\n').slice(0, -1);
  }

  const own: Case[] = [
    { line: 'qcow2 info --for', some: ['--format=', '--force-share'], none: ['--output='] },
    { line: 'qcow2 info --format=', exactly: ['qcow2', 'raw'] },
    { line: 'qcow2 info --output=j', exactly: ['json'] },
    { line: 'qcow2 create --backing=im', exactly: ['images'] },
    { line: 'qcow2 create -o cluster_size=1M,compression_type=', exactly: ['zlib', 'zstd'] },
    { line: 'qcow2 create -o cluster_size=1M,lazy', exactly: ['1M,lazy_refcounts='] },
    { line: 'qcow2 create --option=preallocation=me', exactly: ['metadata'] },
    { line: 'qcow2 info disk', exactly: ['disk.qcow2', 'disk two.qcow2'] },
    { line: 'qcow2 info part', exactly: ['part1.raw', 'part[1].raw'] },
    { line: 'qcow2 frobnicate ', exactly: [] },
  ];

  it.each([...CASES, ...own])('$line', async (wanted) => {
    expectCompletions(await complete(wanted.line), wanted);
  });

  it('registers itself', async () => {
    const program = 'source "$1"; complete -p qcow2';
    const args = ['--norc', '--noprofile', '-c', program, 'bash', await scriptFile('bash')];
    expect(run('bash', args)).toBe('complete -F _qcow2 qcow2\n');
  });
});

describePeers(['fish'], 'in fish', () => {
  async function complete(line: string): Promise<string[]> {
    const program = 'source $argv[1]; complete -C $argv[2]';
    const env = { ...process.env, HOME: directory, XDG_CONFIG_HOME: join(directory, 'config') };
    const args = ['--no-config', '-c', program, await scriptFile('fish'), line];
    const text = run('fish', args, { cwd: directory, env });
    return text
      .split('\n')
      .filter((found) => found !== '')
      .map((found) => found.replace(/\t.*/, ''));
  }

  const own: Case[] = [
    { line: 'qcow2 info --for', some: ['--format', '--force-share'], none: ['--output'] },
    { line: 'qcow2 info --output=j', exactly: ['--output=json'] },
    {
      line: 'qcow2 create -o cluster_size=1M,compression_type=',
      exactly: ['cluster_size=1M,compression_type=zlib', 'cluster_size=1M,compression_type=zstd'],
    },
    {
      line: 'qcow2 create -o backing_file=100%s.raw,lazy',
      exactly: ['on', 'off'].map((word) => `backing_file=100%s.raw,lazy_refcounts=${word}`),
    },
    { line: 'qcow2 info disk', exactly: ['disk.qcow2', 'disk two.qcow2'] },
  ];
  // Each value of an option of -o is offered whole there.
  const shared = CASES.filter(({ line }) => !line.includes('-o comp'));

  it.each([...shared, ...own])('$line', async (wanted) => {
    expectCompletions(await complete(wanted.line), wanted);
  });
});

describePeers(['zsh'], 'in zsh', () => {
  /** What zsh's own functions are asked for: they only work in a terminal. */
  async function ask(...words: string[]): Promise<string[]> {
    const program = `
      compdef() { :; }
      _describe() { print -rl -- describe "\${(@P)2}"; }
      _arguments() { print -rl -- arguments "$@"; }
      source $1; shift
      words=("$@") CURRENT=$#
      _qcow2
    `;
    const args = ['-f', '-c', program, 'zsh', await scriptFile('zsh'), ...words];
    return run('zsh', args, { cwd: directory }).split('\n');
  }

  it('asks for a command first', async () => {
    const asked = await ask('qcow2', '');
    expect(asked[0]).toBe('describe');
    for (const name of COMMAND_NAMES) {
      expect(asked.some((line) => line.startsWith(`${name}:`))).toBe(true);
    }
    expect(await ask('qcow2', 'qemu-img', '')).not.toContain('mount');
    expect(await ask('qcow2', 'qemu-img', '')).toContain('info');
  });

  it('asks for the arguments of a command then', async () => {
    for (const words of [['qcow2'], ['qcow2', 'qemu-img']]) {
      const asked = await ask(...words, 'create', '');
      expect(asked.slice(0, 2)).toEqual(['arguments', '-s']);
      expect(asked).toContain(
        '(-f --format)--format=[format of the new image (default raw)]:FORMAT:(qcow2 raw)',
      );
      expect(asked).toContain('*:operand:_files');
    }
    expect(await ask('qcow2', 'completion', '')).toContain('*:operand:(bash zsh fish)');
  });

  it('knows the arguments of every command', async () => {
    const program = `
      compdef() { :; }
      _arguments() { shift; print -r -- "$#"; }
      source $1; shift
      for name in "$@"; do words=(qcow2 $name '') CURRENT=3; _qcow2; done
    `;
    const args = ['-f', '-c', program, 'zsh', await scriptFile('zsh'), ...COMMAND_NAMES];
    const counts = run('zsh', args).trim().split('\n').map(Number);
    expect(counts).toHaveLength(COMMAND_NAMES.length);
    expect(counts.every((count) => count > 0)).toBe(true);
  });
});
