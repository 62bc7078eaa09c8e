/**
 * Compressed clusters of type 0: a raw deflate stream (RFC 1951) per cluster.
 *
 * When reading, the input may carry garbage after the stream, because its length is only known in
 * sectors; the stream may also be longer than a cluster, of which only the first cluster counts
 * (as in QEMU). When writing, no reference may reach back further than 4 KiB: readers, QEMU among
 * them, inflate with a window of that size.
 */

import { compressesFor, createStreamHandle, decompressesTo } from './stream-handle.ts';
import type { StreamHandle } from './stream-handle.ts';

/** What QEMU compresses with; its level is zlib's default. */
const DEFLATE_OPTIONS = { windowBits: 12, memLevel: 9 } as const;

/** `qcow2` as a raw deflate stream of one stored block. */
const PROBE = new Uint8Array([1, 5, 0, 0xfa, 0xff, 0x71, 0x63, 0x6f, 0x77, 0x32]);

interface Handles {
  inflate: StreamHandle | undefined;
  deflate: StreamHandle | undefined;
}

const handles: Partial<Handles> = {};

/** Loaded at the first compressed cluster: most commands never meet one, and loading takes time. */
const zlib = () => process.getBuiltinModule('node:zlib');

/**
 * Fills all of `output` from a deflate stream.
 * @returns whether the stream was valid and long enough
 */
export function inflateCluster(input: Uint8Array, output: Uint8Array): boolean {
  if (!('inflate' in handles)) {
    const { constants, createInflateRaw } = zlib();
    handles.inflate = createStreamHandle({
      create: () => createInflateRaw(),
      finishFlush: constants.Z_FINISH,
      works: (handle) => decompressesTo(handle, PROBE, PROBE.subarray(5)),
    });
  }
  return handles.inflate === undefined
    ? inflateWithPublicApi(input, output)
    : handles.inflate.transform(input, output) === 0;
}

/**
 * Compresses a cluster to the start of `target`.
 * @returns the length in bytes, or undefined if no byte of `target` would be left
 */
export function deflateCluster(cluster: Uint8Array, target: Uint8Array): number | undefined {
  if (!('deflate' in handles)) {
    const { constants, createDeflateRaw } = zlib();
    handles.deflate = createStreamHandle({
      create: () => createDeflateRaw(DEFLATE_OPTIONS),
      finishFlush: constants.Z_FINISH,
      works: (handle) => compressesFor(handle, inflateCluster),
    });
  }
  if (handles.deflate === undefined) return deflateWithPublicApi(cluster, target);
  const unused = handles.deflate.transform(cluster, target);
  return unused === undefined || unused === 0 ? undefined : target.length - unused;
}

/** {@link inflateCluster} through Node's public functions; exported for its test. */
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

/** {@link deflateCluster} through Node's public functions; exported for its test. */
export function deflateWithPublicApi(cluster: Uint8Array, target: Uint8Array): number | undefined {
  const bytes = zlib().deflateRawSync(cluster, DEFLATE_OPTIONS);
  if (bytes.length >= target.length) return undefined;
  target.set(bytes);
  return bytes.length;
}
