import { expect, it } from 'vitest';
import { openImage } from '../../src/index.ts';
import type { ChainedQcow2Image } from '../../src/index.ts';

function withImage(path: string, work: (image: ChainedQcow2Image) => void): void {
  const image = openImage(path);
  try {
    if (image.format !== 'qcow2') throw new Error(`${path} is not a qcow2 image`);
    work(image);
  } finally {
    image.close();
  }
}

it('VM state is read from past the end of the disk', () => {
  withImage('images/features/snapshot-vm-state.qcow2', (image) => {
    const snapshot = image.openSnapshot('running');
    expect(snapshot.info).toMatchObject({ id: '1', vmStateSize: 20_000, diskSize: 32_768 });
    const state = snapshot.openVmState();
    expect(state.size).toBe(20_000);
    const bytes = new Uint8Array(state.size);
    state.read(bytes, 0);
    expect(bytes.every((byte) => byte === 0xe2)).toBe(true);
    expect(() => state.read(new Uint8Array(1), state.size)).toThrow(/outside the device/);
  });
});

it('a snapshot that is not there is named, and those that are', () => {
  withImage('images/demo.qcow2', (image) => {
    expect(() => image.openSnapshot('3')).toThrow(
      "images/demo.qcow2: there is no snapshot '3'; it has 1 (installed), 2 (configured)",
    );
  });
});

it('nothing can be written to an image or a snapshot', () => {
  withImage('images/demo.qcow2', (image) => {
    for (const device of [image, image.openSnapshot('1')]) {
      expect(device.readOnly).toBe(true);
      expect(() => device.write(new Uint8Array(512), 0)).toThrow(/can only be read/);
      expect(() => device.writeZeroes(0, 512)).toThrow(/can only be read/);
      expect(() => device.discard(0, 512)).toThrow(/can only be read/);
    }
  });
});
