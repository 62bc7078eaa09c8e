import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openDevice, openImage } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

describePeers(['qemu-img', 'qemu-io'], 'backing chains', () => {
  it('reads through 200 layers, each of which wrote one cluster', () => {
    const directory = temporaryDirectory();
    const create = (name: string, ...rest: string[]): string =>
      run('qemu-img', ['create', '-q', '-f', 'qcow2', ...rest, name], { cwd: directory });
    create('0.qcow2', '-o', 'cluster_size=4k', '-o', 'size=1M');
    for (let layer = 1; layer < 200; layer++) {
      create(
        `${layer}.qcow2`,
        '-u',
        '-o',
        'cluster_size=4k,size=1M',
        '-b',
        `${layer - 1}.qcow2`,
        '-F',
        'qcow2',
      );
    }
    for (let layer = 0; layer < 200; layer += 20) {
      const image = join(directory, `${layer}.qcow2`);
      // Written without its backing file, which QEMU would open all of.
      const options = `driver=qcow2,backing=,file.filename=${image}`;
      run('qemu-io', ['--image-opts', options, '-c', `write -q -P ${layer + 1} ${layer * 4}k 4k`]);
    }
    const disk = openImage(join(directory, '199.qcow2'));
    try {
      const bytes = new Uint8Array(disk.size);
      disk.read(bytes, 0);
      for (let layer = 0; layer < 200; layer++) {
        const expected = layer % 20 === 0 ? layer + 1 : 0;
        const cluster = bytes.subarray(layer * 4096, (layer + 1) * 4096);
        expect(cluster.every((byte) => byte === expected)).toBe(true);
      }
      const depths = [...disk.extents(0, disk.size)]
        .filter(({ kind }) => kind === 'data')
        .map(({ depth }) => depth);
      expect(depths).toEqual([199, 179, 159, 139, 119, 99, 79, 59, 39, 19]);
    } finally {
      disk.close();
    }
  });

  it('resolves relative names against the overlay, and sees no more than the overlay', () => {
    const directory = temporaryDirectory();
    mkdirSync(join(directory, 'sub'));
    const base = join(directory, 'base.raw');
    writeFileSync(base, Buffer.alloc(3 * MiB, 0xbb));
    const [shorter, longer] = ['shorter', 'longer'].map((name) => join(directory, 'sub', name));
    const create = (image: string, size: string): void => {
      qemuImg('create', '-q', '-f', 'qcow2', '-b', '../base.raw', '-F', 'raw', image, size);
    };
    create(shorter!, '1M');
    create(longer!, '4M');
    qemuIo(longer!, ['write -q -P 0xcc 64k 64k']);
    for (const [path, size, own] of [
      [shorter!, MiB, 0xbb],
      [longer!, 4 * MiB, 0xcc],
    ] as const) {
      const disk = openImage(path);
      try {
        const bytes = Buffer.alloc(disk.size);
        disk.read(bytes, 0);
        const expected = Buffer.alloc(size);
        expected.fill(0xbb, 0, Math.min(size, 3 * MiB));
        expected.fill(own, 64 * KiB, 128 * KiB);
        expect(bytes.equals(expected)).toBe(true);
      } finally {
        disk.close();
      }
    }
  });

  it('opens a layer as that layer saw the disk', () => {
    const directory = temporaryDirectory();
    const base = join(directory, 'base.qcow2');
    const top = join(directory, 'top.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', base, '1M');
    qemuIo(base, ['write -q -P 1 0 64k']);
    qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', top);
    qemuIo(top, ['write -q -P 2 0 64k']);
    const byte = new Uint8Array(1);
    for (const [layer, expected] of [
      [0, 1],
      [1, 2],
      [undefined, 2],
    ]) {
      const device = openDevice(top, { layer });
      device.read(byte, 100);
      expect(byte[0]).toBe(expected);
      device.close();
      expect(() => device.read(byte, 0)).toThrow(/closed/);
    }
    expect(() => openDevice(top, { layer: 2 })).toThrow(/no layer 2; its layers are 0 to 1/);
  });

  it('follows references only as the policy says', () => {
    const directory = temporaryDirectory();
    mkdirSync(join(directory, 'inside'));
    writeFileSync(join(directory, 'secret.raw'), Buffer.alloc(MiB, 1));
    const image = join(directory, 'inside', 'image.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-b', '../secret.raw', '-F', 'raw', image, '1M');
    expect(() => openImage(image, { references: 'refuse' })).toThrow(/not allowed/);
    expect(() => openImage(image, { references: 'same-directory' })).toThrow(/not allowed/);
    const asked: string[] = [];
    const references = ({ path, role }: { path: string; role: string }): boolean => {
      asked.push(`${role}: ${path}`);
      return true;
    };
    openImage(image, { references }).close();
    expect(asked).toEqual([`backing file: ${join(directory, 'secret.raw')}`]);
    const alone = openImage(image, { references: 'refuse', withoutBacking: true });
    const byte = new Uint8Array(1);
    alone.read(byte, 0);
    expect(byte[0]).toBe(0);
    alone.close();
  });
});
