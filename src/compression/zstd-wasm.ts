/**
 * Zstandard on Node before 22.15: zstd's own C library as WebAssembly, from the package
 * `@bokuweb/zstd-wasm`, called without what that package puts around it.
 *
 * Its functions load asynchronously, and allocate and free a context, two buffers and the result a
 * call. Here the module is compiled at once (5 ms) and its contexts and buffers are kept: measured
 * on 64 KiB clusters, 95 against 67 MB/s for compressing and 461 against 367 MB/s for
 * decompressing. That leans on the inside of the package, so its version is pinned, and the module
 * is tried once before it is used.
 */

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

/** The parts of WebAssembly that are used; Node's types do not have them. */
interface WebAssemblyApi {
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object, imports: object) => { exports: object };
}

/** The library's functions, by zstd's names. Pointers are offsets in its memory. */
interface ZstdModule {
  /** Replaced when the memory grows. */
  HEAPU8: Uint8Array;
  /** Called by `init`, instead of compiling asynchronously. */
  instantiateWasm: (imports: object, receive: (instance: { exports: object }) => void) => object;
  init(): void;
  _malloc(lengthBytes: number): number;
  _free(pointer: number): void;
  _ZSTD_isError(code: number): number;
  _ZSTD_compressBound(lengthBytes: number): number;
  _ZSTD_createCCtx(): number;
  _ZSTD_createDCtx(): number;
  _ZSTD_compress_usingDict(
    context: number,
    target: number,
    targetBytes: number,
    source: number,
    sourceBytes: number,
    dictionary: number,
    dictionaryBytes: number,
    level: number,
  ): number;
  _ZSTD_decompress_usingDict(
    context: number,
    target: number,
    targetBytes: number,
    source: number,
    sourceBytes: number,
    dictionary: number,
    dictionaryBytes: number,
  ): number;
}

/** ZSTD_CLEVEL_DEFAULT, which QEMU and Node compress with. */
const LEVEL = 3;

const PACKAGE = '@bokuweb/zstd-wasm';

let loaded: ZstdWasm | undefined;
let isLoaded = false;
let failure: unknown;

/** The codec, loaded at the first call; undefined if the package is not there or does not work. */
export function loadZstdWasm(): ZstdWasm | undefined {
  if (!isLoaded) {
    isLoaded = true;
    try {
      const codec = new ZstdWasm(instantiate());
      if (codec.works()) loaded = codec;
    } catch (error) {
      failure = error;
    }
  }
  return loaded;
}

/** Why {@link loadZstdWasm} returned nothing, if an error was the reason. */
export function zstdWasmFailure(): unknown {
  return failure;
}

function instantiate(): ZstdModule {
  const require = createRequire(import.meta.url);
  const directory = dirname(require.resolve(PACKAGE));
  const { Module: module } = require(join(directory, 'zstd.js')) as { Module: ZstdModule };
  const { Module, Instance } = (globalThis as unknown as { WebAssembly: WebAssemblyApi })
    .WebAssembly;
  module.instantiateWasm = (imports, receive) => {
    const compiled = new Module(readFileSync(join(directory, 'zstd.wasm')));
    const instance = new Instance(compiled, imports);
    receive(instance);
    return instance.exports;
  };
  module.init();
  return module;
}

/** One instance of the library, with its contexts and buffers. */
class ZstdWasm {
  readonly #module: ZstdModule;
  readonly #input: WasmBuffer;
  readonly #output: WasmBuffer;
  #encoder = 0;
  #decoder = 0;

  constructor(module: ZstdModule) {
    this.#module = module;
    this.#input = new WasmBuffer(module);
    this.#output = new WasmBuffer(module);
  }

  /** Compresses `input` as one frame; undefined if it would not leave a byte of `target`. */
  compress(input: Uint8Array, target: Uint8Array): number | undefined {
    const module = this.#module;
    this.#encoder ||= module._ZSTD_createCCtx();
    // With less room than the bound, the encoder may give up although the frame would fit.
    const bound = module._ZSTD_compressBound(input.length);
    const from = this.#input.reserve(input.length);
    const to = this.#output.reserve(bound);
    module.HEAPU8.set(input, from);
    const length = module._ZSTD_compress_usingDict(
      this.#encoder,
      to,
      bound,
      from,
      input.length,
      0,
      0,
      LEVEL,
    );
    if (this.#isError(length) || length >= target.length) return undefined;
    target.set(module.HEAPU8.subarray(to, to + length));
    return length;
  }

  /** Decompresses one frame; how many bytes it held, or undefined if it is bad or too long. */
  decompress(frame: Uint8Array, output: Uint8Array): number | undefined {
    const module = this.#module;
    this.#decoder ||= module._ZSTD_createDCtx();
    const from = this.#input.reserve(frame.length);
    const to = this.#output.reserve(output.length);
    module.HEAPU8.set(frame, from);
    const length = module._ZSTD_decompress_usingDict(
      this.#decoder,
      to,
      output.length,
      from,
      frame.length,
      0,
      0,
    );
    if (this.#isError(length) || length > output.length) return undefined;
    output.set(module.HEAPU8.subarray(to, to + length));
    return length;
  }

  /** Whether a round trip brings the same bytes back. */
  works(): boolean {
    const content = Uint8Array.from({ length: 256 }, (_, index) => index >>> 4);
    const frame = new Uint8Array(content.length);
    const output = new Uint8Array(content.length);
    const length = this.compress(content, frame);
    if (length === undefined) return false;
    const count = this.decompress(frame.subarray(0, length), output);
    return count === content.length && content.every((byte, index) => output[index] === byte);
  }

  #isError(code: number): boolean {
    return this.#module._ZSTD_isError(code) !== 0;
  }
}

/** A buffer in the library's memory that grows to the largest length asked for. */
class WasmBuffer {
  readonly #module: ZstdModule;
  #pointer = 0;
  #capacity = 0;

  constructor(module: ZstdModule) {
    this.#module = module;
  }

  /** The buffer's offset, once it holds `lengthBytes`; what it held before is lost. */
  reserve(lengthBytes: number): number {
    if (lengthBytes > this.#capacity || this.#pointer === 0) {
      this.#capacity = 0;
      this.#module._free(this.#pointer);
      this.#pointer = this.#module._malloc(Math.max(1, lengthBytes));
      if (this.#pointer === 0) throw new RangeError('out of memory for zstd');
      this.#capacity = lengthBytes;
    }
    return this.#pointer;
  }
}
