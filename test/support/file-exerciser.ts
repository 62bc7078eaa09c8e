/**
 * Writes to files that show parts of one disk, at random, and holds every byte against a model: what
 * fsx does to a file, for several that overlap.
 */

import { closeSync, fsyncSync, openSync, readSync, statSync, writeSync } from 'node:fs';
import { fallocate } from '../../src/host/fallocate.ts';
import { Random } from './random.ts';

/** A file, and which part of the disk it shows. */
export interface ExercisedFile {
  path: string;
  /** First byte, in the disk's offsets. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** How a {@link FileExerciser} goes about it. */
export interface ExerciserOptions {
  seed: number;
  files: readonly ExercisedFile[];
  /** What the disk holds; kept up to date. */
  model: Buffer;
  /** Whether holes and zeroes can be made (default true). */
  hasHoles?: boolean;
  /** Longest write or read, in bytes (default 300 KiB). */
  mostBytes?: number;
}

/** Operations that an error tells of. */
const TOLD = 12;

type Action = 'write' | 'read' | 'punch' | 'zero' | 'sync' | 'reopen';
const ACTIONS: readonly Action[] = [
  ...Array<Action>(8).fill('write'),
  ...Array<Action>(8).fill('read'),
  ...(['punch', 'punch', 'zero', 'sync', 'reopen'] as const),
];

/** See the head of this file. */
export class FileExerciser {
  /** Operations so far. */
  count = 0;
  readonly #options: ExerciserOptions;
  readonly #random: Random;
  readonly #log: string[] = [];
  #descriptors: number[];

  /** Opens the files; close it when done. */
  constructor(options: ExerciserOptions) {
    this.#options = options;
    this.#random = new Random(options.seed);
    this.#descriptors = options.files.map(({ path }) => openSync(path, 'r+'));
  }

  /** @throws {Error} at the first byte that is not what it should be */
  run(until: { count: number } | { deadlineMs: number }): void {
    const mayGoOn = (): boolean =>
      'count' in until ? this.count < until.count : Date.now() < until.deadlineMs;
    while (mayGoOn()) this.#step();
  }

  /** Reads everything through each file. */
  verify(): void {
    this.#options.files.forEach((file, index) => {
      const chunk = 1024 * 1024;
      for (let at = 0; at < file.length; at += chunk) {
        this.#read(index, at, Math.min(chunk, file.length - at));
      }
    });
  }

  close(): void {
    for (const fd of this.#descriptors.splice(0)) closeSync(fd);
  }

  #step(): void {
    const { files, mostBytes = 300 * 1024 } = this.#options;
    const random = this.#random;
    const index = random.below(files.length);
    const file = files[index]!;
    const action = random.pick(ACTIONS);
    // Aligned half of the time, near either end now and then.
    const unit = random.pick([1, 1, 512, 4096, 65536]);
    let at = Math.floor(random.below(file.length) / unit) * unit;
    if (random.oneIn(20)) at = Math.max(0, file.length - random.below(5000) - 1);
    const most = Math.min(mostBytes, file.length - at);
    let length = 1 + random.below(random.oneIn(3) ? most : Math.min(most, 9000));
    if (unit > 1 && length > unit) length -= length % unit;
    this.count++;
    this.#log.push(`${this.count}: ${action} ${file.path} ${at}+${length}`);
    if (this.#log.length > TOLD) this.#log.shift();
    this.#act(action, index, at, length);
  }

  #act(action: Action, index: number, at: number, length: number): void {
    const { files, model, hasHoles = true } = this.#options;
    const file = files[index]!;
    const fd = this.#descriptors[index]!;
    const range = model.subarray(file.offset + at, file.offset + at + length);
    switch (action) {
      case 'write': {
        const start = this.#random.next();
        for (let i = 0; i < length; i++) range[i] = (start + i + (i >>> 8)) & 0xff;
        for (let done = 0; done < length;) {
          done += writeSync(fd, range, done, length - done, at + done);
        }
        break;
      }
      case 'read':
        this.#read(index, at, length);
        break;
      case 'punch':
      case 'zero': {
        if (!hasHoles) break;
        const mode = action === 'punch' ? 'punch-hole' : 'zero-range';
        const done = fallocate(mode, { fd, offset: at, length, path: file.path });
        if (!done) throw this.#problem(`${mode} was refused`);
        range.fill(0);
        break;
      }
      case 'sync':
        fsyncSync(fd);
        break;
      case 'reopen':
        closeSync(fd);
        this.#descriptors[index] = openSync(file.path, 'r+');
        if (statSync(file.path).size !== file.length) throw this.#problem('the size has changed');
    }
  }

  #read(index: number, at: number, length: number): void {
    const { files, model } = this.#options;
    const file = files[index]!;
    const target = Buffer.alloc(length);
    for (let done = 0; done < length;) {
      const count = readSync(this.#descriptors[index]!, target, done, length - done, at + done);
      if (count === 0) throw this.#problem(`${file.path} ends at ${at + done}`);
      done += count;
    }
    const start = file.offset + at;
    const expected = model.subarray(start, start + length);
    if (expected.equals(target)) return;
    const wrong = target.findIndex((byte, i) => byte !== expected[i]);
    const [found, wanted] = [target[wrong], expected[wrong]];
    throw this.#problem(`${file.path} has ${found} at ${at + wrong}, not ${wanted}`);
  }

  #problem(text: string): Error {
    return new Error(`seed ${this.#options.seed}: ${text}; it was\n${this.#log.join('\n')}`);
  }
}
