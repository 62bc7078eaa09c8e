/**
 * Compressed clusters of type 1: Zstandard frames (RFC 8878), usually one a cluster.
 *
 * The fastest codec that is there. For reading: Node's own (from 22.15; 945 MB/s on 64 KiB
 * clusters), the system's library (about 1000), that library as WebAssembly (461, and a tenth of
 * the others where the data is nearly random). For writing: Node's (313 MB/s), the system's library,
 * which takes half the time of WebAssembly (95 to 130). Where there is nothing of these, fzstd in
 * plain JavaScript still reads (about 110 MB/s), and nothing can be compressed.
 */

import { Decompress as FzstdStream } from 'fzstd';
import { Qcow2Error } from '../errors.ts';
import { loadLibzstd } from '../host/libzstd.ts';
import { compressesFor, createStreamHandle, decompressesTo } from './stream-handle.ts';
import type { StreamHandle } from './stream-handle.ts';
import { zstdFrameLength } from './zstd-frame.ts';
import { loadZstdWasm, zstdWasmFailure } from './zstd-wasm.ts';

/** Decompresses one frame to the start of `output`: how many bytes it held, or undefined. */
type FrameDecoder = (frame: Uint8Array, output: Uint8Array) => number | undefined;

/** `qcow2` as a frame of one raw block. */
const PROBE = new Uint8Array([
  0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x05, 0x29, 0x00, 0x00, 0x71, 0x63, 0x6f, 0x77, 0x32,
]);

/** The parts of `node:zlib` that Node 20 does not have. */
interface ZlibWithZstd {
  createZstdCompress?: () => unknown;
  createZstdDecompress?: () => unknown;
  constants: { ZSTD_e_end?: number };
}

let decoder: FrameDecoder | undefined;
let encoder: ClusterCompressor | undefined;

/** As `ClusterEncoder` of codec.ts, which imports this file. */
type ClusterCompressor = (cluster: Uint8Array, target: Uint8Array) => number | undefined;

/**
 * Loads the fastest decoder that this Node can run, which the first zstd cluster does otherwise.
 */
export function prepareZstd(): Promise<void> {
  frameDecoder();
  return Promise.resolve();
}

/**
 * Loads the fastest encoder that this Node can run.
 * @throws {Qcow2Error} `MISSING_DEPENDENCY` if there is none
 */
export function prepareZstdEncoder(): void {
  encoder ??= nativeEncoder() ?? libraryEncoder() ?? wasmEncoder();
  if (encoder === undefined) {
    throw new Qcow2Error(
      'MISSING_DEPENDENCY',
      'compressing with zstd needs Node 22.15 or the package @bokuweb/zstd-wasm',
      {
        hint: 'install it with: npm install @bokuweb/zstd-wasm; or compress with zlib',
        cause: zstdWasmFailure(),
      },
    );
  }
}

/**
 * Compresses a cluster as one frame to the start of `target`.
 * @returns the length in bytes, or undefined if no byte of `target` would be left
 * @throws {Qcow2Error} `MISSING_DEPENDENCY` as {@link prepareZstdEncoder}
 */
export function zstdCluster(cluster: Uint8Array, target: Uint8Array): number | undefined {
  if (encoder === undefined) prepareZstdEncoder();
  return encoder?.(cluster, target);
}

/**
 * Fills all of `output` from the zstd frames at the start of `input`; what follows is ignored.
 * One frame a cluster is the rule; more are followed, as QEMU does.
 * @returns whether the frames were valid and held enough bytes
 */
export function unzstdCluster(input: Uint8Array, output: Uint8Array): boolean {
  return decodeFrames(frameDecoder(), input, output);
}

/** {@link unzstdCluster} without Node's and WebAssembly's decoder; exported for its test. */
export function unzstdWithFzstd(input: Uint8Array, output: Uint8Array): boolean {
  return decodeFrames(decodeFzstd, input, output);
}

function decodeFrames(decode: FrameDecoder, input: Uint8Array, output: Uint8Array): boolean {
  let consumed = 0;
  let filled = 0;
  while (filled < output.length) {
    const length = zstdFrameLength(input, consumed);
    if (length === undefined) return false;
    const frame = input.subarray(consumed, consumed + length);
    const count = decode(frame, filled === 0 ? output : output.subarray(filled));
    // A frame without content would let a hostile cluster hold us up; nobody writes them.
    if (count === undefined || count === 0) return false;
    consumed += length;
    filled += count;
  }
  return true;
}

function frameDecoder(): FrameDecoder {
  decoder ??= nativeDecoder() ?? libraryDecoder() ?? wasmDecoder() ?? decodeFzstd;
  return decoder;
}

/** Node's zlib, where that has zstd. Loading it takes time that most commands can save. */
function zlibWithZstd(): (Required<ZlibWithZstd> & { finishFlush: number }) | undefined {
  const zlib = process.getBuiltinModule('node:zlib') as unknown as ZlibWithZstd;
  const { createZstdCompress, createZstdDecompress, constants } = zlib;
  if (createZstdCompress === undefined || createZstdDecompress === undefined) return undefined;
  const { ZSTD_e_end: finishFlush } = constants;
  if (finishFlush === undefined) return undefined;
  return { createZstdCompress, createZstdDecompress, constants, finishFlush };
}

function nativeDecoder(): FrameDecoder | undefined {
  const zlib = zlibWithZstd();
  if (zlib === undefined) return undefined;
  const handle: StreamHandle | undefined = createStreamHandle({
    create: () => zlib.createZstdDecompress(),
    finishFlush: zlib.finishFlush,
    works: (tried) => decompressesTo(tried, PROBE, PROBE.subarray(9)),
  });
  if (handle === undefined) return undefined;
  return (frame, output) => {
    const unused = handle.transform(frame, output);
    return unused === undefined ? undefined : output.length - unused;
  };
}

function nativeEncoder(): ClusterCompressor | undefined {
  const zlib = zlibWithZstd();
  if (zlib === undefined) return undefined;
  const handle = createStreamHandle({
    create: () => zlib.createZstdCompress(),
    finishFlush: zlib.finishFlush,
    restartsByItself: true,
    works: (tried) => compressesFor(tried, unzstdCluster),
  });
  if (handle === undefined) return undefined;
  return (cluster, target) => {
    const unused = handle.transform(cluster, target);
    return unused === undefined || unused === 0 ? undefined : target.length - unused;
  };
}

function libraryEncoder(): ClusterCompressor | undefined {
  const library = loadLibzstd();
  if (library === undefined) return undefined;
  return (cluster, target) => {
    const length = library.compress(cluster, target);
    return length === target.length ? undefined : length;
  };
}

function libraryDecoder(): FrameDecoder | undefined {
  const library = loadLibzstd();
  return library && ((frame, output) => library.decompress(frame, output));
}

function wasmDecoder(): FrameDecoder | undefined {
  const wasm = loadZstdWasm();
  return wasm && ((frame, output) => wasm.decompress(frame, output));
}

function wasmEncoder(): ClusterCompressor | undefined {
  const wasm = loadZstdWasm();
  return wasm && ((cluster, target) => wasm.compress(cluster, target));
}

/** Block by block, so that a frame that expands past the cluster is stopped there. */
const decodeFzstd: FrameDecoder = (frame, output) => {
  let filled = 0;
  const decoder = new FzstdStream((chunk) => {
    output.set(chunk, filled);
    filled += chunk.length;
  });
  try {
    decoder.push(frame, true);
    return filled;
  } catch {
    return undefined;
  }
};
