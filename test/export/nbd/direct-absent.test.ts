/** Without koffi, long reads are copied, and arrive all the same. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { FileDevice } from '../../../src/device/file.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import { temporaryDirectory } from '../../support/temp.ts';
import { TestClient } from './client.ts';
import { pattern } from './wire.ts';

const loadLibc = vi.hoisted(() => vi.fn(() => undefined));
vi.mock('../../../src/host/libc.ts', () => ({ loadLibc }));

const MiB = 1024 * 1024;

it('long reads do without koffi', async () => {
  const directory = temporaryDirectory();
  const disk = pattern(8 * MiB);
  writeFileSync(join(directory, 'disk'), disk);
  using device = new FileDevice(join(directory, 'disk'));
  const socketPath = join(directory, 'socket');
  await using server = await serveNbd([{ name: '', device }], { socketPath });
  const client = await TestClient.open({ path: socketPath });
  for (const offset of [0, 1000, MiB]) {
    const { data } = await client.read(offset, 6 * MiB);
    expect(data.equals(disk.subarray(offset, offset + 6 * MiB))).toBe(true);
  }
  expect(loadLibc).toHaveBeenCalled();
  expect(server.clientCount).toBe(1);
  client.destroy();
});
