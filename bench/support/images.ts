/**
 * The images that the benches read, made once a run.
 */

import { createCipheriv } from 'node:crypto';
import { closeSync, openSync, readSync, rmSync, truncateSync, writeSync } from 'node:fs';
import path from 'node:path';
import type { ProgramRunner } from './process.ts';

const BLOCK_BYTES = 4 * 1024 * 1024;
const TEBIBYTE = 2 ** 40;

/** Makes images on first use, in a directory that the run removes. */
export class ImageStore {
  readonly #directory: string;
  readonly #programs: ProgramRunner;
  readonly #made = new Map<string, Promise<string>>();
  /** Size of the image of {@link data}, in bytes. */
  readonly dataBytes: number;

  constructor(directory: string, programs: ProgramRunner, dataBytes: number) {
    this.#directory = directory;
    this.#programs = programs;
    this.dataBytes = dataBytes;
  }

  /** An uncompressed image, fully allocated in order, full of data that does not compress. */
  data(): Promise<string> {
    return this.#once('data.qcow2', async (image) => {
      const raw = `${image}.raw`;
      writeNoise(raw, this.dataBytes);
      await this.#programs.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, image]);
      rmSync(raw);
    });
  }

  /** A compressed image of data that compresses to about a half. */
  compressed(compression: 'zlib' | 'zstd'): Promise<string> {
    return this.#once(`${compression}.qcow2`, async (image) => {
      const raw = `${image}.raw`;
      writeNoise(raw, this.dataBytes, { isHalf: true });
      const options = ['-c', '-m', '8', '-W', '-o', `compression_type=${compression}`];
      const formats = ['-f', 'raw', '-O', 'qcow2'];
      await this.#programs.run(['qemu-img', 'convert', ...formats, ...options, raw, image]);
      rmSync(raw);
    });
  }

  /** A 1 TiB image with every cluster allocated and every L2 table there, on a sparse file. */
  huge(): Promise<string> {
    return this.#once('huge.qcow2', async (image) => {
      const options = ['-q', '-f', 'qcow2', '-o', 'preallocation=metadata'];
      await this.#programs.run(['qemu-img', 'create', ...options, image, String(TEBIBYTE)]);
    });
  }

  /**
   * An overlay of {@link huge} whose first {@link dataBytes} are compressed, so that reading it takes
   * every cache: of tables, of two layers, and of decompressed clusters.
   */
  hugeAndCompressed(): Promise<string> {
    return this.#once('huge-top.qcow2', async (image) => {
      const raw = `${image}.raw`;
      writeNoise(raw, this.dataBytes, { isHalf: true });
      const base = ['-b', await this.huge(), '-F', 'qcow2'];
      await this.#programs.run(['qemu-img', 'create', '-q', '-f', 'qcow2', ...base, image]);
      const options = ['-n', '-c', '-m', '8', '-W', '-f', 'raw', '-O', 'qcow2'];
      await this.#programs.run(['qemu-img', 'convert', ...options, raw, image]);
      rmSync(raw);
    });
  }

  /** {@link huge} with an ext4 filesystem on the whole disk. */
  hugeWithFilesystem(): Promise<string> {
    return this.#once('huge-ext4.qcow2', async (image) => {
      const raw = `${image}.raw`;
      closeSync(openSync(raw, 'wx'));
      truncateSync(raw, TEBIBYTE);
      await this.#programs.run(['mkfs.ext4', '-q', '-F', raw]);
      // Into an image that has all its tables already, which -n leaves as they are.
      const options = ['-q', '-f', 'qcow2', '-o', 'preallocation=metadata'];
      await this.#programs.run(['qemu-img', 'create', ...options, image, String(TEBIBYTE)]);
      const convert = ['-n', '-f', 'raw', '-O', 'qcow2', '--target-is-zero'];
      await this.#programs.run(['qemu-img', 'convert', ...convert, raw, image]);
      rmSync(raw);
    });
  }

  #once(name: string, make: (image: string) => Promise<void>): Promise<string> {
    const image = path.join(this.#directory, name);
    let made = this.#made.get(name);
    if (made === undefined) {
      made = make(image).then(() => image);
      this.#made.set(name, made);
    }
    return made;
  }
}

/** Reads the file once, so that it is in the page cache. Not for large sparse files. */
export function warmPageCache(file: string): void {
  const buffer = new Uint8Array(BLOCK_BYTES);
  const descriptor = openSync(file, 'r');
  try {
    while (readSync(descriptor, buffer) > 0);
  } finally {
    closeSync(descriptor);
  }
}

/**
 * Writes `sizeBytes` of an AES key stream: as good as random, the same every time, and fast. With
 * `isHalf` only four bits of each byte are kept, which compresses to a half.
 */
function writeNoise(file: string, sizeBytes: number, { isHalf = false } = {}): void {
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, 1), Buffer.alloc(16));
  const zeroes = Buffer.alloc(BLOCK_BYTES);
  const descriptor = openSync(file, 'wx');
  try {
    for (let offset = 0; offset < sizeBytes; offset += BLOCK_BYTES) {
      const block = cipher.update(zeroes.subarray(0, Math.min(BLOCK_BYTES, sizeBytes - offset)));
      if (isHalf) for (let at = 0; at < block.length; at++) block[at]! &= 0x0f;
      writeSync(descriptor, block);
    }
  } finally {
    closeSync(descriptor);
  }
}
