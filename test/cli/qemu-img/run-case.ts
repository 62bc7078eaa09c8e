/** Makes the calls of the tables, with both programs, and holds all that they do against each other. */

import { mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { runProgram } from '../../../src/cli/program.ts';
import { holdWithQemuIo } from '../../support/lock-holder.ts';
import { run, tryRun } from '../../support/qemu.ts';
import type { RunResult } from '../../support/qemu.ts';
import { temporaryDirectory } from '../../support/temp.ts';
import { expectSameImage } from '../twins.ts';
import type { Twins } from '../twins.ts';
import { OVERLAYS } from './fixture.ts';
import type { OptionCase, Subcommand } from './model.ts';

/** What calls have in common. */
export interface CaseContext {
  subcommand: Subcommand;
  /** The directory that `makeImages` has filled; never written. */
  images: string;
}

/** Expects a call to do what the table says. */
export async function expectCase(
  option: OptionCase,
  { subcommand, images }: CaseContext,
): Promise<void> {
  const { name, readOnly } = subcommand;
  const twins = readOnly ? { ours: images, theirs: images } : copyTwice(images, option);
  const ours = await whileInUse(twins.ours, option, () =>
    runOurs(name, inDirectory(option.args, twins.ours)),
  );
  if (!readOnly && ours.exitCode !== 0) expectUntouched(twins.ours, images);
  if (option.runs === 'ours') {
    expectOwn(ours, option.ours ?? { exitCode: option.exitCode });
    return;
  }
  const theirs = await whileInUse(twins.theirs, option, () =>
    tryRun('qemu-img', [name, ...inDirectory(option.args, twins.theirs)].slice(name ? 0 : 1)),
  );
  if (option.ours === undefined) {
    expect(theirs.exitCode, theirs.stderr).toBe(option.exitCode);
    expectSameTold(ours, theirs, option, twins);
    expectSameFiles(twins, option);
  } else {
    expectOwn(ours, option.ours);
  }
}

/** Runs a command, or the program if there is no name; whatever goes wrong is told in one line. */
async function runOurs(name: string, args: readonly string[]): Promise<RunResult> {
  let [stdout, stderr] = ['', ''];
  const io = {
    stdout: (text: string) => (stdout += text),
    stderr: (text: string) => (stderr += text),
    isTerminal: false,
  };
  const exitCode = await runProgram(name === '' ? args : [name, ...args], io);
  if (exitCode === (name === 'compare' ? 2 : 1)) {
    // What a check has found stands before it.
    expect(stderr).toMatch(
      name === 'check' ? /^(?:(?!qcow2: ).+\n)*qcow2: .+\n$/ : /^qcow2: .+\n$/,
    );
  }
  return { exitCode, stdout, stderr };
}

/** Two directories with the files that a call speaks of, and those behind them, holes included. */
function copyTwice(images: string, { args, inUse }: OptionCase): Twins {
  const directory = temporaryDirectory();
  const twins = { ours: join(directory, 'a'), theirs: join(directory, 'b') };
  for (const twin of Object.values(twins)) mkdirSync(twin);
  const spoken = [...args, inUse ?? ''].join(' ');
  const names = readdirSync(images).filter((name) => {
    return [name, ...(OVERLAYS[name] ?? [])].some((candidate) => spoken.includes(candidate));
  });
  if (names.length === 0) return twins;
  // One process of ours: starting them takes most of the time.
  const script = 'for twin in "$0" "$1"; do cp -a --sparse=always $2 "$twin" || exit; done';
  run('sh', ['-c', script, twins.ours, twins.theirs, names.join(' ')], { cwd: images });
  return twins;
}

function inDirectory(args: readonly string[], directory: string): string[] {
  return args.map((argument) => argument.replaceAll('@', `${directory}/`));
}

async function whileInUse<T>(
  directory: string,
  { inUse }: OptionCase,
  work: () => T | Promise<T>,
): Promise<T> {
  if (inUse === undefined) return work();
  await using holder = await holdWithQemuIo(['-f', 'qcow2', join(directory, inUse)]);
  expect(holder.pid).toBeGreaterThan(0);
  return await work();
}

function expectOwn(
  { exitCode, stdout, stderr }: RunResult,
  expected: NonNullable<OptionCase['ours']>,
): void {
  expect(exitCode, stderr).toBe(expected.exitCode);
  if (expected.says !== undefined) expect(stdout + stderr).toContain(expected.says);
}

/** As `(1.00/100%)`: how many lines there are is a matter of how much is read at a time. */
const PROGRESS = /(?: {4}\(\d+\.\d\d\/100%\)\r)+/g;

function expectSameTold(
  ours: RunResult,
  theirs: RunResult,
  { output }: OptionCase,
  twins: Twins,
): void {
  const isJson = output === 'json';
  const told = ({ exitCode, stdout, stderr }: RunResult, directory: string) => ({
    exitCode,
    stdout: isJson || output === 'own' ? '' : tidy(stdout, directory),
    document: isJson ? (JSON.parse(tidy(stdout, directory)) as unknown) : undefined,
    complains: stderr !== '',
  });
  expect(told(ours, twins.ours), `${ours.stderr}\n${theirs.stderr}`).toEqual(
    told(theirs, twins.theirs),
  );
}

function tidy(text: string, directory: string): string {
  return text.replace(PROGRESS, '(progress)').replaceAll(directory, '@');
}

/** Expects that nothing was written to the copies in a directory, and nothing was added. */
function expectUntouched(copies: string, images: string): void {
  const stampsOf = (directory: string): string[] => {
    return readdirSync(copies).map((name) => {
      const { size, mtimeNs } = statSync(join(directory, name), { bigint: true });
      return `${name}: ${size} bytes, changed at ${mtimeNs}`;
    });
  };
  expect(stampsOf(copies)).toEqual(stampsOf(images));
}

const HEADER_BYTES = 512;

function expectSameFiles(
  twins: Twins,
  { images, contents, bytes, headers, exitCode }: OptionCase,
): void {
  // What a call that failed leaves behind is told by `stampsOf`.
  if (exitCode === 0) expect(readdirSync(twins.ours)).toEqual(readdirSync(twins.theirs));
  for (const name of bytes) expect(haveSameBytes(twins, name), name).toBe(true);
  for (const name of [...images, ...headers, ...contents]) {
    const format = name.endsWith('.raw') ? 'raw' : 'qcow2';
    if (format === 'qcow2' && haveSameBytes(twins, name)) continue;
    expectSameImage(twins, name, { format, allocation: !contents.includes(name) });
  }
  for (const name of headers) {
    const [a, b] = readBoth(twins, name).map((image) => image.toString('hex', 0, HEADER_BYTES));
    expect(a, name).toBe(b);
  }
}

function haveSameBytes(twins: Twins, name: string): boolean {
  const [a, b] = readBoth(twins, name);
  return a!.equals(b!);
}

function readBoth({ ours, theirs }: Twins, name: string): Buffer[] {
  return [ours, theirs].map((directory) => readFileSync(join(directory, name)));
}
