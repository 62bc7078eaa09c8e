import { spawn } from 'node:child_process';
import { copyFileSync, existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { pattern } from '../export/nbd/wire.ts';
import { describePeers, SYSTEM_PYTHON } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { servers } from './serve-process.ts';

const MiB = 1024 * 1024;
const SIZE = 16 * MiB;
const WRITES = [
  ['write -q -P 1 1M 64k', 'write -q -P 2 5M 4k', 'discard -q 7M 300k'],
  ['write -q -z 9M 1M', 'write -q -P 3 16776704 512', 'write -q -P 4 1100000 1'],
];

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

function at(name: string): string {
  return join(directory(), name);
}

/** A qcow2 image that holds `pattern`, with a bitmap that records and one that does not any more. */
function image(): string {
  writeFileSync(at('pattern.raw'), pattern(SIZE));
  const path = at('disk.qcow2');
  qemuImg('convert', '-O', 'qcow2', at('pattern.raw'), path);
  qemuImg('bitmap', '--add', path, 'monday');
  copyFileSync(path, at('monday.qcow2'));
  qemuIo(path, ['write -q -P 9 2M 64k', 'write -q -P 9 12M 128k']);
  qemuImg('bitmap', '--disable', path, 'monday');
  qemuImg('bitmap', '--add', path, 'tuesday');
  return path;
}

function mapOf(uri: string, bitmap: string): string {
  return run('nbdinfo', [`--map=qemu:dirty-bitmap:${bitmap}`, uri]);
}

/** What a bitmap says before, between and after writes over `uri`. */
function mapsOf(uri: string, bitmap: string): string[] {
  const maps = [mapOf(uri, bitmap)];
  for (const commands of WRITES) {
    qemuIo(uri, commands, 'raw');
    maps.push(mapOf(uri, bitmap));
  }
  return maps;
}

/** The same from qemu-nbd, which stores what is written in `path`. */
async function mapsOfQemu(path: string, bitmap: string): Promise<string[]> {
  const socket = at('q');
  const args = ['-t', '--discard=unmap', '-f', 'qcow2', '-B', bitmap, '-k', socket, path];
  const rival = spawn('qemu-nbd', args);
  try {
    for (let tries = 0; !existsSync(socket) && tries < 1000; tries++) await sleep(10);
    return mapsOf(`nbd+unix:///?socket=${socket}`, bitmap);
  } finally {
    rival.kill('SIGTERM');
    await new Promise((resolve) => rival.on('close', resolve));
  }
}

describePeers(
  ['qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo', 'python3-libnbd'],
  'bitmaps of an image that is written',
  () => {
    it.each(['tuesday', 'monday'])('tell what they tell at qemu-nbd: %s', async (bitmap) => {
      const path = image();
      copyFileSync(path, at('theirs.qcow2'));
      const { uri, stop, stderr } = await serve('--socket=s', '--rw', `--bitmap=${bitmap}`, path);
      const ours = mapsOf(uri, bitmap);
      expect(await stop()).toBe(0);
      expect(stderr()).toBe('');
      expect(ours).toEqual(await mapsOfQemu(at('theirs.qcow2'), bitmap));
      expect(new Set(ours).size).toBe(bitmap === 'tuesday' ? 3 : 1);
      // It was saved as it was told last.
      const again = await serve('--socket=t', `--bitmap=${bitmap}`, path);
      expect(mapOf(again.uri, bitmap)).toBe(ours.at(-1));
      qemuImg('check', path);
    });

    it('make an incremental backup, and nothing is missed that is written meanwhile', async () => {
      const path = image();
      const backup = at('backup.qcow2');
      qemuImg('create', '-f', 'qcow2', '-F', 'qcow2', '-b', at('monday.qcow2'), backup);
      for (const bitmap of ['monday', 'tuesday']) {
        const source = await serve('--socket=s', '--rw', `--bitmap=${bitmap}`, path);
        const target = await serve('--socket=t', '--rw', backup);
        if (bitmap === 'monday') qemuIo(source.uri, WRITES[0]!, 'raw');
        const script = `
import nbd
a = nbd.NBD(); a.add_meta_context('qemu:dirty-bitmap:${bitmap}'); a.connect_uri('${source.uri}')
b = nbd.NBD(); b.connect_uri('${target.uri}')
dirty = []
def extents(context, offset, entries, error):
    for length, flags in zip(entries[::2], entries[1::2]):
        if flags: dirty.append((offset, length))
        offset += length
a.block_status(a.get_size(), 0, extents)
for offset, length in dirty: b.pwrite(a.pread(length, offset), offset)
print(sum(length for _, length in dirty))`;
        const copied = Number(run(SYSTEM_PYTHON, ['-c', script]));
        expect(copied).toBeLessThan(MiB);
        expect(copied).toBeGreaterThan(0);
        if (bitmap === 'monday') qemuIo(source.uri, ['write -q -P 5 14M 64k'], 'raw');
        expect(await source.stop()).toBe(0);
        expect(await target.stop()).toBe(0);
      }
      expect(run('qemu-img', ['compare', path, backup])).toContain('identical');
    });

    it('are lost to a kill, and say so, like those of any image that is written', async () => {
      const path = image();
      const { uri, child, ended } = await serve('--socket=s', '--rw', '--bitmap=tuesday', path);
      qemuIo(uri, ['write -q 1M 64k', 'flush'], 'raw');
      child.kill('SIGKILL');
      await ended;
      const { 'format-specific': specific } = qemuImgJson('info', '--output=json', path) as {
        'format-specific': { data: { bitmaps: { name: string; flags: string[] }[] } };
      };
      expect(specific.data.bitmaps.map(({ name, flags }) => [name, ...flags])).toEqual([
        ['monday'],
        ['tuesday', 'in-use', 'auto'],
      ]);
    });
  },
);
