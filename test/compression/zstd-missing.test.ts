/** What happens where neither Node nor a package has zstd's own library. */

import * as zlib from 'node:zlib';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type * as zstdWasm from '../../src/compression/zstd-wasm.ts';
import { clusterContent } from './cluster-content.ts';

const content = clusterContent('text', 4, 4096);

beforeEach(() => {
  vi.resetModules();
  const { constants } = zlib;
  const withoutZstd = { ...zlib, constants, createZstdCompress: undefined };
  vi.spyOn(process, 'getBuiltinModule').mockImplementation((id) =>
    id === 'node:zlib' ? withoutZstd : undefined,
  );
  vi.doMock('../../src/compression/zstd-wasm.ts', async (original) => ({
    ...(await original<typeof zstdWasm>()),
    loadZstdWasm: () => undefined,
  }));
  vi.doMock('../../src/host/libzstd.ts', () => ({ loadLibzstd: () => undefined }));
});

afterEach(() => {
  vi.doUnmock('../../src/compression/zstd-wasm.ts');
  vi.doUnmock('../../src/host/libzstd.ts');
  vi.restoreAllMocks();
  vi.resetModules();
});

it('compressing with zstd says what to install, and zlib goes on working', async () => {
  const { clusterEncoder } = await import('../../src/compression/codec.ts');
  expect(() => clusterEncoder('zstd')).toThrow(
    expect.objectContaining({
      code: 'MISSING_DEPENDENCY',
      message: expect.stringContaining('Node 22.15 or the package @bokuweb/zstd-wasm') as string,
    }),
  );
  const length = clusterEncoder('zlib')(content, new Uint8Array(content.length));
  expect(length).toBeLessThan(content.length);
});

it('zstd clusters are read all the same', async () => {
  const wasm = await vi.importActual<typeof zstdWasm>('../../src/compression/zstd-wasm.ts');
  const frame = new Uint8Array(content.length);
  expect(wasm.loadZstdWasm()!.compress(content, frame)).toBeLessThan(frame.length);
  const { unzstdCluster } = await import('../../src/compression/zstd.ts');
  const output = new Uint8Array(content.length);
  expect(unzstdCluster(frame, output)).toBe(true);
  expect(content.equals(output)).toBe(true);
});
