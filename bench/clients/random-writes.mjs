/**
 * Writes blocks of 4 KiB at random offsets of a file, calls fsync(2), and prints how many it wrote a
 * second, the fsync included.
 *
 *     node random-writes.mjs FILE BYTES buffered|direct
 */

import { closeSync, constants, fsyncSync, openSync, writeSync } from 'node:fs';

const BLOCK_BYTES = 4096;
const COUNT = 32 * 1024;

const [file, bytes, way] = process.argv.slice(2);
const blocks = Number(bytes) / BLOCK_BYTES;
const flags = constants.O_RDWR | (way === 'direct' ? constants.O_DIRECT : 0);

// O_DIRECT wants memory that is aligned, as that of WebAssembly is, to pages.
const memory = Buffer.from(new WebAssembly.Memory({ initial: 1 }).buffer, 0, BLOCK_BYTES).fill(7);

const fd = openSync(file, flags);
let state = 1;
const start = performance.now();
for (let written = 0; written < COUNT; written++) {
  // A linear congruential generator of period 2^32: the same offsets for everybody.
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  writeSync(fd, memory, 0, BLOCK_BYTES, ((state >>> 8) % blocks) * BLOCK_BYTES);
}
fsyncSync(fd);
const seconds = (performance.now() - start) / 1000;
closeSync(fd);
process.stdout.write(`${COUNT / seconds}\n`);
