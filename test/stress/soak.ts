/**
 * A soak: a 1 TiB image is read at full speed through a mount and a server at the same time, every
 * byte that comes is compared, and neither process may grow.
 *
 * The image is an overlay whose first bytes are compressed, over a base with every L2 table there is,
 * so that all caches fill.
 */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createCipheriv } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { execFile } from 'node:child_process';
import { watchMemory } from '../../bench/support/memory.ts';
import type { MemoryUse } from '../../bench/support/memory.ts';
import type { StatsReport } from '../../src/operations/stats.ts';
import { Random } from '../support/random.ts';
import { run } from '../support/qemu.ts';
import { until } from '../support/until.ts';

const MEBIBYTE = 2 ** 20;
const DISK_BYTES = 2 ** 40;
const DATA_BYTES = 64 * MEBIBYTE;
const MAX_READ_BYTES = MEBIBYTE;
const READERS = 3;

/** What each process may have resident (the least that the bench `memory` asks for). */
const MOST_BYTES = 200 * MEBIBYTE;
/** How much more may be resident at the end than about a tenth of the way. */
const MOST_GROWTH = 1.1;
/** In less time than this the caches are still filling. */
const SECONDS_FOR_GROWTH = 120;

/** What is soaked, and for how long. */
export interface SoakRequest {
  directory: string;
  /** The built command. */
  program: string;
  seed: number;
  seconds: number;
}

/**
 * Soaks.
 *
 * @returns what was read and what it took, in a line
 * @throws {Error} if a byte is wrong, a process takes too much, grows, or does not end well
 */
export async function runSoak({ directory, program, seed, seconds }: SoakRequest): Promise<string> {
  const data = makeData(seed);
  const image = makeImage(directory, data);
  const tree = join(directory, 'tree');
  const socket = join(directory, 'socket');
  mkdirSync(tree);
  const children = [
    start([program, 'mount', '--foreground', image, tree]),
    start([program, 'serve', '--socket', socket, image]),
  ] as const;
  const [mount, server] = children;
  try {
    await until(() => existsSync(join(tree, 'disk.raw')) && existsSync(socket), 30_000);
    const deadline = Date.now() + seconds * 1000;
    const work = Promise.all([
      ...Array.from({ length: READERS }, (_, index) =>
        readFile(join(tree, 'disk.raw'), { data, deadline, random: new Random(seed * 97 + index) }),
      ),
      loadServer(socket, seconds),
      compareServed(socket, { data, deadline, directory }),
    ]);
    const [ofMount, ofServer] = await Promise.all([
      watchMemory(mount.pid!, () => work.then(() => undefined)),
      watchMemory(server.pid!, () => work.then(() => undefined)),
    ]);
    const stats = JSON.parse(readFileSync(join(tree, 'stats.json'), 'utf8')) as StatsReport;
    if (stats.requests.read.errors > 0) throw new Error('reads through the mount failed');
    const told = [
      judge('mount', ofMount, seconds),
      judge('server', ofServer, seconds),
      `${Math.round(stats.requests.read.bytes / 2 ** 30)} GiB through the mount`,
    ];
    return told.join('; ');
  } finally {
    for (const child of children) await stop(child);
  }
}

/** Four random bits a byte, which compress to a half. */
function makeData(seed: number): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32LE(seed >>> 0);
  const data = createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(
    Buffer.alloc(DATA_BYTES),
  );
  for (let at = 0; at < data.length; at++) data[at]! &= 0x0f;
  return data;
}

function makeImage(directory: string, data: Buffer): string {
  const [base, raw] = [join(directory, 'base.qcow2'), join(directory, 'data.raw')];
  const image = join(directory, 'top.qcow2');
  const allTables = ['-o', 'preallocation=metadata'];
  const create = ['create', '-q', '-f', 'qcow2'];
  run('qemu-img', [...create, ...allTables, base, String(DISK_BYTES)], { timeoutMs: 120_000 });
  run('qemu-img', [...create, '-b', base, '-F', 'qcow2', image]);
  writeFileSync(raw, data);
  const formats = ['-n', '-c', '-f', 'raw', '-O', 'qcow2'];
  run('qemu-img', ['convert', ...formats, raw, image], { timeoutMs: 120_000 });
  rmSync(raw);
  return image;
}

interface Reading {
  data: Buffer;
  /** In milliseconds since 1970. */
  deadline: number;
  random: Random;
}

/** Reads at random, half of it where there is data, until the time is up. */
async function readFile(path: string, { data, deadline, random }: Reading): Promise<void> {
  const file = await open(path);
  const target = Buffer.alloc(MAX_READ_BYTES);
  const zeroes = Buffer.alloc(MAX_READ_BYTES);
  try {
    while (Date.now() < deadline) {
      const length = 1 + random.below(MAX_READ_BYTES);
      const isData = random.below(2) === 0;
      // In sectors: numbers beyond 2^32 are more than a random number has.
      const sectors = (isData ? DATA_BYTES - MAX_READ_BYTES : DISK_BYTES - MAX_READ_BYTES) / 512;
      const offset = random.below(sectors) * 512;
      const { bytesRead } = await file.read(target, 0, length, offset);
      if (bytesRead !== length) throw new Error(`${bytesRead} of ${length} bytes at ${offset}`);
      const ofData = Math.max(0, Math.min(length, DATA_BYTES - offset));
      const isRight =
        target.subarray(0, ofData).equals(data.subarray(offset, offset + ofData)) &&
        target.subarray(ofData, length).equals(zeroes.subarray(ofData, length));
      if (!isRight) throw new Error(`wrong bytes in ${length} at ${offset} of ${path}`);
    }
  } finally {
    await file.close();
  }
}

/** Reads from the server as fast as it gives, anywhere and where there is data. */
async function loadServer(socket: string, seconds: number): Promise<void> {
  const uri = `nbd+unix:///?socket=${encodeURIComponent(socket)}`;
  const common = ['--ioengine=nbd', `--uri=${uri}`, '--iodepth=4', '--thread', '--norandommap'];
  await promisify(execFile)('fio', [
    ...common,
    '--time_based',
    `--runtime=${seconds}`,
    ...['--name=in-order', '--rw=read', '--bs=1m'],
    ...['--name=compressed', '--rw=randread', '--bs=64k', `--size=${DATA_BYTES}`],
  ]);
}

/** Copies the data out of the server again and again, and compares it. */
async function compareServed(
  socket: string,
  { data, deadline, directory }: { data: Buffer; deadline: number; directory: string },
): Promise<void> {
  const copy = join(directory, 'copy.raw');
  const server = `file.driver=nbd,file.server.type=unix,file.server.path=${socket}`;
  const source = `driver=raw,offset=0,size=${DATA_BYTES},${server}`;
  do {
    const options = ['--image-opts', '-O', 'raw', source, copy];
    await promisify(execFile)('qemu-img', ['convert', ...options]);
    if (!readFileSync(copy).equals(data)) throw new Error('the server gave wrong bytes');
    rmSync(copy);
  } while (Date.now() < deadline);
}

function judge(name: string, use: MemoryUse, seconds: number): string {
  const { peakBytes, earlyBytes, lateBytes } = use;
  const [peak, early, late] = [peakBytes, earlyBytes, lateBytes].map((bytes) =>
    Math.round(bytes / MEBIBYTE),
  );
  const told = `${name}: ${peak} MiB at most, ${early} early, ${late} late`;
  if (peakBytes > MOST_BYTES) throw new Error(`too much memory: ${told}`);
  const hasGrown = lateBytes > earlyBytes * MOST_GROWTH;
  if (hasGrown && seconds >= SECONDS_FOR_GROWTH) throw new Error(`memory grows: ${told}`);
  return told;
}

function start(args: readonly string[]): ChildProcess {
  return spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit'] });
}

/** Ends a program in good order. */
async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    const ended = new Promise((resolve) => child.on('close', resolve));
    child.kill('SIGTERM');
    await ended;
  }
  if (child.exitCode !== 0) throw new Error(`it ended with ${child.exitCode ?? child.signalCode}`);
}
