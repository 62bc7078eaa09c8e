/**
 * Compressed clusters of type 1: Zstandard frames (RFC 8878), usually one a cluster.
 *
 * Three decoders, the fastest that is there: Node's own (from 22.15; 945 MB/s of 64 KiB
 * clusters), zstddec's WebAssembly (about 295), and fzstd in plain JavaScript (about 110).
 * WebAssembly is compiled asynchronously, so the command line awaits {@link prepareZstd} before
 * it opens images; a library caller who does not still reads everything, through fzstd.
 */

import { Decompress as FzstdStream } from 'fzstd';
import { createStreamHandle } from './stream-handle.ts';
import type { StreamHandle } from './stream-handle.ts';
import { zstdFrameLength } from './zstd-frame.ts';

/** Decompresses one frame to the start of `output`: how many bytes it held, or undefined. */
type FrameDecoder = (frame: Uint8Array, output: Uint8Array) => number | undefined;

/** `qcow2` as a frame of one raw block. */
const PROBE = new Uint8Array([
  0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x05, 0x29, 0x00, 0x00, 0x71, 0x63, 0x6f, 0x77, 0x32,
]);

/** The parts of `node:zlib` that Node 20 does not have. */
interface ZlibWithZstd {
  createZstdDecompress?: () => unknown;
  constants: { ZSTD_e_end?: number };
}

interface WasmDecoder {
  init(): Promise<void>;
  decode(frames: Uint8Array, uncompressedSize: number): Uint8Array;
}

let native: StreamHandle | undefined;
let isNativeProbed = false;
let wasm: WasmDecoder | undefined;

/**
 * Makes the fastest decoder ready that this Node can run. Reading works without it, more slowly
 * on Node 20.
 */
export async function prepareZstd(): Promise<void> {
  if (nativeHandle() !== undefined || wasm !== undefined) return;
  const { ZSTDDecoder } = await import('zstddec');
  const decoder = new ZSTDDecoder();
  await decoder.init();
  wasm = decoder;
}

/**
 * Fills all of `output` from the zstd frames at the start of `input`; what follows is ignored.
 * One frame a cluster is the rule; more are followed, as QEMU does.
 * @returns whether the frames were valid and held enough bytes
 */
export function unzstdCluster(input: Uint8Array, output: Uint8Array): boolean {
  const decode = nativeHandle() !== undefined ? decodeNative : wasm ? decodeWasm : decodeFzstd;
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

function nativeHandle(): StreamHandle | undefined {
  if (!isNativeProbed) {
    const zlib = process.getBuiltinModule('node:zlib') as unknown as ZlibWithZstd;
    const { createZstdDecompress, constants } = zlib;
    if (createZstdDecompress !== undefined && constants.ZSTD_e_end !== undefined) {
      native = createStreamHandle({
        create: () => createZstdDecompress(),
        finishFlush: constants.ZSTD_e_end,
        compressed: PROBE,
        expected: PROBE.subarray(9),
      });
    }
    isNativeProbed = true;
  }
  return native;
}

const decodeNative: FrameDecoder = (frame, output) => {
  const unused = nativeHandle()?.decompress(frame, output);
  return unused === undefined ? undefined : output.length - unused;
};

const decodeWasm: FrameDecoder = (frame, output) => {
  // Returns nothing for an invalid frame, and for one that does not fit.
  const bytes = wasm?.decode(frame, output.length);
  if (bytes === undefined || bytes.length > output.length) return undefined;
  output.set(bytes);
  return bytes.length;
};

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
