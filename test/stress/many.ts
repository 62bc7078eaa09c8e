/**
 * Many mounts at once: overlays of one base, each mounted writable by a process of its own, all read
 * and written at the same time, then unmounted and checked. Tells how much memory a mount takes.
 */

import { mkdirSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { run } from '../support/qemu.ts';
import { Random } from '../support/random.ts';

const start = promisify(execFile);

/** What {@link runMany} is to do. */
export interface ManyRequest {
  /** Empty. */
  directory: string;
  /** Path of the built command. */
  program: string;
  seed: number;
  /** Mounts at once. */
  mounts: number;
}

const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
/** Commands that run at the same time; each is a Node that starts. */
const AT_ONCE = 4;
const WRITES = 64;
const BLOCK_BYTES = 64 * 1024;

/** Mounts, writes, reads, unmounts and checks; what was seen. @throws {Error} what went wrong */
export async function runMany({ directory, program, seed, mounts }: ManyRequest): Promise<string> {
  const env = { ...process.env, QCOW2_STATE_DIR: join(directory, 'state') };
  const options = { cwd: directory, env, maxBuffer: 64 * MiB };
  const qcow2 = async (...args: string[]): Promise<string> =>
    (await start(process.execPath, [program, ...args], options)).stdout;
  mkdirSync(join(directory, 'state'), { mode: 0o700 });
  run('qemu-img', ['create', '-q', '-f', 'qcow2', 'base.qcow2', String(DISK_BYTES)], options);
  run('qemu-io', ['-f', 'qcow2', '-c', `write -P 7 0 ${DISK_BYTES / 2}`, 'base.qcow2'], options);
  const numbers = Array.from({ length: mounts }, (_, index) => index);
  const timed = async (act: (number: number) => Promise<unknown>, atOnce: number) => {
    const begin = Date.now();
    await forEach(numbers, act, atOnce);
    return `${((Date.now() - begin) / 1000).toFixed(1)} s`;
  };
  try {
    const mounting = await timed(async (number) => {
      await qcow2(
        'create',
        '-q',
        '-f',
        'qcow2',
        '-b',
        'base.qcow2',
        '-F',
        'qcow2',
        `${number}.qcow2`,
      );
      await qcow2('mount', '--rw', `${number}.qcow2`, `m${number}`);
    }, AT_ONCE);
    const using = await timed(
      (number) => useMount(join(directory, `m${number}/disk.raw`), new Random(seed + number)),
      mounts,
    );
    const memory = memoryOf(
      JSON.parse(await qcow2('mounts', '--output=json')) as { pid: number }[],
    );
    const unmounting = await timed((number) => qcow2('unmount', `m${number}`), AT_ONCE);
    for (const number of numbers) run('qemu-img', ['check', '-q', `${number}.qcow2`], options);
    return (
      `${mounts} mounts at once: mounted in ${mounting}, used in ${using}, unmounted in ` +
      `${unmounting}; all images are sound; ${memory}`
    );
  } finally {
    await qcow2('unmount', '--all', '--force').catch(() => undefined);
  }
}

/** Writes blocks, syncs, and reads them and others back. */
async function useMount(file: string, random: Random): Promise<void> {
  const handle = await open(file, 'r+');
  try {
    const written = new Map<number, number>();
    for (let count = 0; count < WRITES; count++) {
      const block = random.below(DISK_BYTES / BLOCK_BYTES);
      const byte = 1 + random.below(255);
      await handle.write(Buffer.alloc(BLOCK_BYTES, byte), 0, BLOCK_BYTES, block * BLOCK_BYTES);
      written.set(block, byte);
    }
    await handle.sync();
    for (let count = 0; count < WRITES; count++) {
      const block = random.oneIn(2)
        ? random.pick([...written.keys()])
        : random.below(DISK_BYTES / BLOCK_BYTES);
      const inBase = block < DISK_BYTES / 2 / BLOCK_BYTES ? 7 : 0;
      const expected = Buffer.alloc(BLOCK_BYTES, written.get(block) ?? inBase);
      const found = Buffer.alloc(BLOCK_BYTES);
      await handle.read(found, 0, BLOCK_BYTES, block * BLOCK_BYTES);
      if (!found.equals(expected)) throw new Error(`${file}: block ${block} is wrong`);
    }
  } finally {
    await handle.close();
  }
}

/** The processes' resident sets, and what they take of the machine's memory, in MiB. */
function memoryOf(mounts: readonly { pid: number }[]): string {
  const values = (file: string, field: RegExp): number[] =>
    mounts.map(({ pid }) => {
      const match = field.exec(readFileSync(`/proc/${pid}/${file}`, 'utf8'));
      return Number(match![1]) / 1024;
    });
  const tell = (name: string, numbers: readonly number[]): string => {
    const mean = numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
    return `${name} ${mean.toFixed(1)} MiB on average, ${Math.max(...numbers).toFixed(1)} at most`;
  };
  const resident = values('status', /^VmRSS:\s+(\d+)/m);
  const proportional = values('smaps_rollup', /^Pss:\s+(\d+)/m);
  return `memory of a mount: ${tell('its share', proportional)}; ${tell('resident', resident)}`;
}

async function forEach(
  numbers: readonly number[],
  act: (number: number) => Promise<unknown>,
  atOnce: number,
): Promise<void> {
  const queue = [...numbers];
  const work = async (): Promise<void> => {
    for (let number = queue.shift(); number !== undefined; number = queue.shift())
      await act(number);
  };
  await Promise.all(Array.from({ length: atOnce }, work));
}
