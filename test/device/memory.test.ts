import { describe, expect, it } from 'vitest';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';

function text(device: GrowableMemoryDevice): string {
  return Buffer.from(device.bytes).toString('latin1');
}

describe('GrowableMemoryDevice', () => {
  it('grows as a file does', () => {
    using device = new GrowableMemoryDevice(Buffer.from('abc'));
    device.write(Buffer.from('de'), 5);
    expect(text(device)).toBe('abc\0\0de');
    device.writeParts([Buffer.from('12'), new Uint8Array(0), Buffer.from('345')], 6);
    expect(text(device)).toBe('abc\0\0d12345');
    device.writeZeroes(9, 4);
    expect(text(device)).toBe('abc\0\0d123\0\0\0\0');
    device.write(new Uint8Array(0), 1000);
    expect(device.size).toBe(13);
    expect(() => device.write(Buffer.from('a'), -1)).toThrow(/outside/);
    expect(() => device.read(new Uint8Array(2), 12)).toThrow(/outside/);
    const target = new Uint8Array(3);
    device.read(target, 5);
    expect(Buffer.from(target).toString()).toBe('d12');
  });

  it('forgets what was cut off', () => {
    using device = new GrowableMemoryDevice(Buffer.from('abcdef'));
    device.resize(2);
    expect(text(device)).toBe('ab');
    device.write(Buffer.from('z'), 4);
    expect(text(device)).toBe('ab\0\0z');
    device.resize(3);
    device.resize(6);
    expect(text(device)).toBe('ab\0\0\0\0');
    device.discard(0, 1);
    expect(text(device)).toBe('\0b\0\0\0\0');
    expect(() => device.discard(5, 2)).toThrow(/outside/);
  });

  it('leaves the bytes alone that it began with', () => {
    const start = Buffer.from('abc');
    using device = new GrowableMemoryDevice(start);
    device.write(Buffer.from('x'), 0);
    expect(start.toString()).toBe('abc');
  });
});
