/**
 * The system's zstd library, through koffi: as fast as in QEMU, where Node itself has no zstd. Most
 * Linux systems have it, because their package managers need it.
 */

import { loadKoffi } from './koffi.ts';

/** A zstd library that has been loaded. */
export interface Libzstd {
  /**
   * Compresses `source` as one frame, with the library's default parameters, to the start of
   * `target`. Both may be shared memory.
   * @returns the length in bytes, or undefined if it does not fit
   */
  compress(source: Uint8Array, target: Uint8Array): number | undefined;
  /**
   * Decompresses one frame to the start of `target`. Both may be shared memory.
   * @returns how many bytes it held, or undefined if it is bad or too long
   */
  decompress(frame: Uint8Array, target: Uint8Array): number | undefined;
}

let loaded: Libzstd | undefined;
let isMissing = false;

/** The library, or undefined where there is none, or koffi is not installed. */
export function loadLibzstd(): Libzstd | undefined {
  if (loaded === undefined && !isMissing) {
    try {
      loaded = load();
    } catch {
      isMissing = true;
    }
  }
  return loaded;
}

function load(): Libzstd {
  const koffi = loadKoffi();
  const library = koffi.load(process.platform === 'darwin' ? 'libzstd.1.dylib' : 'libzstd.so.1');
  const context = library.func('void *ZSTD_createCCtx()')();
  if (context === null) throw new Error('no memory for the library');
  const compress = library.func(
    'size_t ZSTD_compress2(void *cctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize)',
  );
  const decoder = library.func('void *ZSTD_createDCtx()')();
  if (decoder === null) throw new Error('no memory for the library');
  const decompress = library.func(
    'size_t ZSTD_decompressDCtx(void *dctx, void *dst, size_t dstCapacity, const void *src, size_t srcSize)',
  );
  // Where there is little room the library compresses worse, so it always gets as much as it likes.
  let room = new Uint8Array(0);
  return {
    compress(source, target) {
      const bound = source.length + (source.length >>> 7) + 512;
      if (room.length < bound) room = new Uint8Array(bound);
      // Errors are the largest numbers of the type.
      const length = Number(compress(context, room, room.length, source, source.length));
      if (length > target.length) return undefined;
      target.set(room.subarray(0, length));
      return length;
    },
    decompress(frame, target) {
      const length = Number(decompress(decoder, target, target.length, frame, frame.length));
      return length > target.length ? undefined : length;
    },
  };
}
