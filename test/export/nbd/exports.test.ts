import { describe, expect, it } from 'vitest';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { ExportTable } from '../../../src/export/nbd/exports.ts';

class CountedDevice extends NullDevice {
  closed = 0;

  override close(): void {
    this.closed++;
  }
}

describe('ExportTable', () => {
  it('opens a device for its first user and closes it after its last', () => {
    const devices: CountedDevice[] = [];
    const table = new ExportTable([
      {
        name: 'lazy',
        device: (): CountedDevice => {
          const device = new CountedDevice(512);
          devices.push(device);
          return device;
        },
      },
    ]);
    expect(devices).toHaveLength(0);
    const first = table.acquire('lazy')!;
    const second = table.acquire('')!;
    expect(second.device).toBe(first.device);
    table.release(first);
    expect(devices[0]!.closed).toBe(0);
    table.release(second);
    expect(devices[0]!.closed).toBe(1);
    table.release(table.acquire('lazy')!);
    expect(devices.map(({ closed }) => closed)).toEqual([1, 1]);
  });

  it('leaves a device that it was given open', () => {
    const device = new CountedDevice(512);
    const table = new ExportTable([{ name: 'disk', device }]);
    table.release(table.acquire('disk')!);
    expect(device.closed).toBe(0);
  });

  it('has no export of another name', () => {
    const table = new ExportTable([{ name: 'disk', device: new NullDevice(1) }]);
    expect(table.acquire('Disk')).toBeUndefined();
    expect(table.acquire('__proto__')).toBeUndefined();
  });

  it('prefers an export that is called by the empty name over the default', () => {
    const table = new ExportTable([
      { name: 'disk', device: new NullDevice(1) },
      { name: '', device: new NullDevice(1024) },
    ]);
    expect(table.acquire('')!.device.size).toBe(1024);
  });

  it('rounds a device up to whole sectors with zeroes', () => {
    const bytes = new Uint8Array(1000).fill(7);
    const table = new ExportTable([{ name: 'odd', device: new MemoryDevice(bytes) }]);
    const { device } = table.acquire('odd')!;
    expect(device.size).toBe(1024);
    for (const [offset, length] of [
      [0, 1024],
      [990, 20],
      [990, 10],
      [1000, 24],
      [1023, 1],
      [0, 512],
    ] as const) {
      const target = Buffer.alloc(length, 0xff);
      device.read(target, offset);
      const expected = Buffer.alloc(1024);
      expected.set(bytes);
      expect(target.equals(expected.subarray(offset, offset + length))).toBe(true);
    }
    expect(() => device.read(new Uint8Array(2), 1023)).toThrow('outside the device of 1024 bytes');
    expect(
      [...device.extents(500, 524)].map(({ offset, length, zero }) => [offset, length, zero]),
    ).toEqual([
      [500, 500, false],
      [1000, 24, true],
    ]);
  });

  it.each([
    ['no export', [], 'there is nothing to serve'],
    ['two of one name', ['a', 'a'], "there are two exports with the name 'a'"],
    ['a name with NUL', ['a\0'], 'the name of an export contains a NUL character'],
    [
      'a name of 4097 bytes',
      ['ä'.repeat(2049)],
      "the name of an export has 4098 bytes, more than NBD's 4096",
    ],
  ])('refuses %s', (_, names, message) => {
    const exports = names.map((name) => ({ name, device: new NullDevice(1) }));
    expect(() => new ExportTable(exports)).toThrow(
      expect.objectContaining({ code: 'INVALID_OPTION', message }) as Error,
    );
  });
});
