/**
 * Compressed clusters of type 0: a raw deflate stream (RFC 1951) per cluster.
 *
 * The input may carry garbage after the stream, because its length is only known in sectors; the
 * stream may also be longer than a cluster, of which only the first cluster counts (as in QEMU).
 */

import { createStreamHandle } from './stream-handle.ts';
import type { StreamHandle } from './stream-handle.ts';

/** `qcow2` as a raw deflate stream of one stored block. */
const PROBE = new Uint8Array([1, 5, 0, 0xfa, 0xff, 0x71, 0x63, 0x6f, 0x77, 0x32]);

let handle: StreamHandle | undefined;
let isProbed = false;

/** Loaded at the first compressed cluster: most commands never meet one, and loading takes time. */
const zlib = () => process.getBuiltinModule('node:zlib');

/**
 * Fills all of `output` from a deflate stream.
 * @returns whether the stream was valid and long enough
 */
export function inflateCluster(input: Uint8Array, output: Uint8Array): boolean {
  if (!isProbed) {
    const { constants, createInflateRaw } = zlib();
    handle = createStreamHandle({
      create: () => createInflateRaw(),
      finishFlush: constants.Z_FINISH,
      compressed: PROBE,
      expected: PROBE.subarray(5),
    });
    isProbed = true;
  }
  return handle === undefined
    ? inflateWithPublicApi(input, output)
    : handle.decompress(input, output) === 0;
}

/** The same through Node's public functions; exported for its test. */
export function inflateWithPublicApi(input: Uint8Array, output: Uint8Array): boolean {
  try {
    const bytes = zlib().inflateRawSync(input, {
      maxOutputLength: output.length,
      chunkSize: Math.max(64, output.length),
    });
    if (bytes.length !== output.length) return false;
    output.set(bytes);
    return true;
  } catch (error) {
    // A stream longer than a cluster: take the cluster and leave the rest.
    if ((error as NodeJS.ErrnoException).code !== 'ERR_BUFFER_TOO_LARGE') return false;
    return inflatePrefix(input, output);
  }
}

function inflatePrefix(input: Uint8Array, output: Uint8Array): boolean {
  // Bounded: deflate expands at most 1032 times, and a cluster's input is at most two clusters.
  try {
    const bytes = zlib().inflateRawSync(input, { maxOutputLength: input.length * 1033 + 64 });
    output.set(bytes.subarray(0, output.length));
    return bytes.length >= output.length;
  } catch {
    return false;
  }
}
