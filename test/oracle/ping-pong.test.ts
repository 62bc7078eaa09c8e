/**
 * Images that we and QEMU write to in turn, many times over: each goes on from what the other left,
 * and both read what both wrote.
 *
 *     QCOW2_PING_PONG_SEED=7 QCOW2_PING_PONG_TURNS=100 npx vitest run test/oracle/ping-pong
 */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { Qcow2Image } from '../../src/qcow2/image.ts';
import { CRASH_VARIANTS } from '../crash/variants.ts';
import { DiskModel } from '../support/disk-model.ts';
import { DiskSession } from '../support/disk-session.ts';
import { dataOf, describeOperation } from '../support/guest-operations.ts';
import type { GuestOperation } from '../support/guest-operations.ts';
import { FILE_NAMES, initialContent, makeVariant } from '../support/image-variants.ts';
import type { ImageVariant } from '../support/image-variants.ts';
import { readAll } from '../support/open-variant.ts';
import { describePeers } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { RandomOperations, WEIGHTS } from '../support/random-operations.ts';
import { requireSame } from '../support/stamps.ts';
import { temporaryDirectory } from '../support/temp.ts';

const SEED = Number(process.env.QCOW2_PING_PONG_SEED ?? 20_260);
const TURNS = Number(process.env.QCOW2_PING_PONG_TURNS ?? 12);
/** Operations before it is the other's turn. */
const OPERATIONS = 6;

/** An image, its model, and whose turn it is. */
class PingPong {
  readonly model: DiskModel;
  readonly #directory: string;
  readonly #clusterSize: number;
  readonly #operations: RandomOperations;
  #sequence = 1;

  constructor(variant: ImageVariant, directory: string, random: Random) {
    const made = makeVariant(variant, directory);
    const { version, clusterSize } = variant;
    const disk = initialContent(variant, made);
    this.model = new DiskModel({ disk, version, clusterSize, backing: made.backingContent });
    this.#directory = directory;
    this.#clusterSize = clusterSize;
    this.#operations = new RandomOperations(variant, random, random.pick(WEIGHTS));
  }

  /** We write; what was done. */
  ourTurn(): GuestOperation[] {
    const session = new DiskSession(this.model, () => this.open({ writable: true }));
    session.sequence = this.#sequence;
    const done: GuestOperation[] = [];
    for (let count = 0; count < OPERATIONS; count++) {
      const operation = this.#operations.next(this.model);
      if (session.perform(operation)) done.push(operation);
    }
    session.close();
    this.#sequence = session.sequence;
    return done;
  }

  /** QEMU writes; what was done. */
  qemusTurn(): GuestOperation[] {
    const done: GuestOperation[] = [];
    for (let count = 0; count < OPERATIONS; count++) {
      const operation = this.#operations.next(this.model);
      // Of several clusters it would write those before the one that it refuses.
      if (operation.kind === 'compress') {
        operation.length = Math.min(operation.length, this.#clusterSize);
      }
      const sequence = this.#sequence++;
      if (!this.#performWithQemu(operation, sequence)) continue;
      this.model.perform(operation, sequence);
      done.push(operation);
    }
    return done;
  }

  open({ writable }: { writable: boolean }): Qcow2Image {
    const image = openImage(this.path, { writable, writableBacking: writable });
    if (!(image instanceof Qcow2Image)) throw new Error('it is no qcow2 image');
    return image;
  }

  get path(): string {
    return join(this.#directory, FILE_NAMES.image);
  }

  /** Reads the disk or a snapshot with QEMU. */
  readWithQemu(snapshot?: string): Buffer {
    const options = snapshot === undefined ? [] : ['-l', `snapshot.name=${snapshot}`];
    this.#qemuImg('convert', '-f', 'qcow2', '-O', 'raw', ...options, FILE_NAMES.image, 'read.raw');
    return readFileSync(join(this.#directory, 'read.raw'));
  }

  check(): unknown {
    const args = ['check', '--output=json', '-f', 'qcow2', FILE_NAMES.image];
    const { stdout, stderr } = tryRun('qemu-img', args, { cwd: this.#directory });
    const { corruptions, leaks, 'check-errors': errors } = JSON.parse(stdout) as QemuCheck;
    return { corruptions, leaks, errors, stderr };
  }

  #qemuImg(...args: string[]): void {
    run('qemu-img', args, { cwd: this.#directory });
  }

  /** Whether QEMU did it: it does not compress where something is stored. */
  #performWithQemu(operation: GuestOperation, sequence: number): boolean {
    const { image } = FILE_NAMES;
    switch (operation.kind) {
      case 'write':
      case 'compress': {
        const data = join(this.#directory, 'data.bin');
        writeFileSync(data, dataOf(operation, sequence));
        const flag = operation.kind === 'compress' ? '-c' : '';
        const { offset, length } = operation;
        const isDone = this.#qemuIo(`write -q ${flag} -s ${data} ${offset} ${length}`);
        rmSync(data);
        return isDone;
      }
      case 'zero':
        return this.#qemuIo(
          `write -q -z ${operation.mayUnmap ? '-u' : ''} ${operation.offset} ${operation.length}`,
        );
      case 'discard':
        return this.#qemuIo(`discard -q ${operation.offset} ${operation.length}`);
      case 'snapshot':
        this.#qemuImg('snapshot', '-c', operation.name, image);
        return true;
      case 'apply': {
        // It counts what is shared once more for a moment, for which narrow counts have no room.
        const args = ['snapshot', '-a', operation.name, image];
        return tryRun('qemu-img', args, { cwd: this.#directory }).exitCode === 0;
      }
      case 'delete':
        this.#qemuImg('snapshot', '-d', operation.name, image);
        return true;
      case 'resize': {
        const { length } = this.model.disk;
        // What a smaller disk left in its last cluster shows again where QEMU makes it larger.
        if (operation.size > length && length % this.#clusterSize !== 0) return false;
        const shrink = operation.size < length ? ['--shrink'] : [];
        this.#qemuImg('resize', '-q', ...shrink, '-f', 'qcow2', image, String(operation.size));
        return true;
      }
      case 'commit':
        this.#qemuImg('commit', '-q', '-f', 'qcow2', image);
        return true;
      case 'preallocate':
        // It does so only while it makes images or changes their size.
        return false;
      case 'flush':
      case 'reopen':
        return true;
    }
  }

  #qemuIo(command: string): boolean {
    const args = ['-f', 'qcow2', '-d', 'unmap', FILE_NAMES.image];
    const input = `${command}\nquit\n`;
    const { exitCode, stdout, stderr } = tryRun('qemu-io', args, { cwd: this.#directory, input });
    const said = stdout + stderr;
    if (!/failed|error/i.test(said) && exitCode === 0) return true;
    if (command.includes(' -c ') && said.includes('failed: Input/output error')) return false;
    throw new Error(`qemu-io ${command}: ${said}`);
  }
}

interface QemuCheck {
  corruptions?: number;
  leaks?: number;
  'check-errors': number;
}

describePeers(['qemu-img', 'qemu-io'], 'QEMU and we', () => {
  for (const [index, variant] of CRASH_VARIANTS.entries()) {
    const timeout = 30_000 + TURNS * 5000;
    it(`write to an image in turn: ${variant.name}`, { timeout }, () => {
      const random = new Random(SEED + index);
      const game = new PingPong(variant, temporaryDirectory(), random);
      const done: string[] = [];
      for (let turn = 0; turn < TURNS; turn++) {
        const isOurs = turn % 2 === 0;
        const operations = isOurs ? game.ourTurn() : game.qemusTurn();
        const who = isOurs ? 'we' : 'QEMU';
        done.push(...operations.map((operation) => `${who}: ${describeOperation(operation)}`));
        const history = done.join('\n');
        const clean = { corruptions: undefined, leaks: undefined, errors: 0, stderr: '' };
        expect(game.check(), history).toEqual(clean);
        const { disk, snapshots } = game.model;
        using image = game.open({ writable: false });
        try {
          requireSame('the disk as QEMU reads it', game.readWithQemu(), disk);
          requireSame('the disk as we read it', readAll(image), disk);
          for (const { name, disk: expected } of snapshots) {
            requireSame(`${name} as we read it`, readAll(image.openSnapshot(name)), expected);
            // QEMU shows them cut or padded to today's size.
            const theirs = game.readWithQemu(name).subarray(0, expected.length);
            const both = expected.subarray(0, theirs.length);
            requireSame(`${name} as QEMU reads it`, theirs, both);
          }
        } catch (error) {
          throw new Error(`${String(error)}\n${history}`, { cause: error });
        }
      }
    });
  }
});
