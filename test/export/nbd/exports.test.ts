import { describe, expect, it } from 'vitest';
import { NullDevice } from '../../../src/device/memory.ts';
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
        device: () => {
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
      { name: '', device: new NullDevice(2) },
    ]);
    expect(table.acquire('')!.device.size).toBe(2);
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
