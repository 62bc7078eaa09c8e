/**
 * The programs that lib-write measures: this project's library in a process of its own, `qemu-img
 * bench` and `qemu-io`. All print a line once the image is open, and are timed from there until it
 * is closed, which QEMU's programs tell by their exit. Starting up is not measured, flushing and
 * closing the image is.
 */

import { closeSync, constants, copyFileSync, fsyncSync, openSync, rmSync } from 'node:fs';
import path from 'node:path';
import { OURS, type BenchContext, type Contender, type Rival } from './bench.ts';
import type { Command } from './process.ts';
import { offsetsOf, type WriteCase } from './write-patterns.ts';

/** Most requests that qemu-img bench has on their way; its default. */
const QUEUE_DEPTH = 64;
const FILL_BYTE = 0xaa;
const THRESHOLDS = { atLeast: 1, aim: 1.5 };

/** The library. */
export function ourWriter(context: BenchContext, writeCase: WriteCase): Contender {
  const { library, clients } = context;
  const program = path.join(clients, 'write.mjs');
  const make = (image: string): Command => {
    return [process.execPath, program, library, image, JSON.stringify(writeCase.pattern)];
  };
  return contender(context, { name: OURS, make, last: 'closed\n' }, writeCase);
}

/** QEMU with many requests at a time, as many as it takes without asking. */
export function qemuBench(context: BenchContext, writeCase: WriteCase): Rival {
  const { count, bytes, step, flushEvery } = writeCase.pattern;
  const make = (image: string): Command => {
    const depth = flushEvery > 0 ? flushEvery : QUEUE_DEPTH;
    const flushing = flushEvery > 0 ? [`--flush-interval=${flushEvery}`] : [];
    const sizes = ['-c', String(count), '-s', String(bytes), '-S', String(step)];
    const options = ['-w', '-t', 'writeback', '-f', 'qcow2', `--pattern=${FILL_BYTE}`];
    const bench = ['qemu-img', 'bench', ...options, ...sizes, '-d', String(depth), ...flushing];
    return lineBuffered([...bench, image]);
  };
  return { ...contender(context, { name: 'qemu-img bench', make }, writeCase), ...THRESHOLDS };
}

/** QEMU with one request at a time. */
export function qemuIo(context: BenchContext, writeCase: WriteCase): Rival {
  const { bytes, flushEvery } = writeCase.pattern;
  const commands = ['length'];
  let written = 0;
  for (const offset of offsetsOf(writeCase.pattern)) {
    commands.push(`write -q -P ${FILL_BYTE} ${offset} ${bytes}`);
    written++;
    if (flushEvery > 0 && written % flushEvery === 0) commands.push('flush');
  }
  commands.push('flush');
  const make = (image: string): Command => {
    const options = ['-t', 'writeback', '-f', 'qcow2'];
    const script = commands.flatMap((command) => ['-c', command]);
    return lineBuffered(['qemu-io', ...options, ...script, image]);
  };
  return {
    ...contender(context, { name: 'qemu-io', make }, writeCase),
    program: 'qemu-io',
    ...THRESHOLDS,
  };
}

/** A program that writes. */
interface Program {
  name: string;
  /** The command that writes to an image. */
  make: (image: string) => Command;
  /** What it prints when the image is closed; without it, its exit tells. */
  last?: string;
}

/** C programs keep what they print to a pipe to themselves until there is much of it. */
function lineBuffered(command: readonly string[]): Command {
  return ['stdbuf', '-oL', ...command];
}

function contender(
  context: BenchContext,
  { name, make, last }: Program,
  writeCase: WriteCase,
): Contender {
  const { count, bytes } = writeCase.pattern;
  const isSequential = writeCase.pattern.step === bytes;
  return {
    name,
    async measure() {
      const template = await makeTemplate(context, writeCase);
      const image = path.join(context.directory, 'written.qcow2');
      copyDurably(template, image);
      try {
        const seconds = await context.programs.timeFromOutput(make(image), last);
        return { value: (isSequential ? count * bytes : count) / seconds };
      } finally {
        rmSync(image, { force: true });
      }
    },
  };
}

const templates = new Map<string, Promise<string>>();

/** The image that is copied for every measurement. */
function makeTemplate(context: BenchContext, writeCase: WriteCase): Promise<string> {
  const { clusterBytes, state, pattern } = writeCase;
  const name = `${state.replaceAll(' ', '-')}-${clusterBytes}-${pattern.diskBytes}.qcow2`;
  const image = path.join(context.directory, name);
  let made = templates.get(image);
  if (made === undefined) {
    made = fillTemplate(context, image, writeCase).then(() => image);
    templates.set(image, made);
  }
  return made;
}

async function fillTemplate(
  { programs }: BenchContext,
  image: string,
  { clusterBytes, state, pattern: { diskBytes } }: WriteCase,
): Promise<void> {
  const options = ['-q', '-f', 'qcow2', '-o', `cluster_size=${clusterBytes}`];
  await programs.run(['qemu-img', 'create', ...options, image, String(diskBytes)]);
  const fill = (byte: number) => {
    const write = `write -q -P ${byte} 0 ${diskBytes}`;
    return programs.run(['qemu-io', '-f', 'qcow2', '-c', write, image]);
  };
  if (state === 'empty') return;
  await fill(1);
  if (state === 'full') return;
  await programs.run(['qemu-img', 'snapshot', '-c', 'before', image]);
  if (state === 'written since snapshot') await fill(2);
}

/** The copy is on the disk, so that nobody's flush has to wait for it. */
function copyDurably(from: string, to: string): void {
  copyFileSync(from, to, constants.COPYFILE_FICLONE);
  const descriptor = openSync(to, 'r');
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}
