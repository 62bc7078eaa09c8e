import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ReadOnlyDevice } from '../../../src/device/block-device.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { readPartitionTable } from '../../../src/format/partition/index.ts';
import { expectAsSfdisk, GPT_SCRIPT, makeImage, MiB, writeHeaderCrc } from './sfdisk.ts';
import { describePeers } from '../../support/peers.ts';

test('a device that cannot be read is a warning', () => {
  class BrokenDevice extends ReadOnlyDevice {
    readonly size = MiB;
    override read(): void {
      throw new Qcow2Error('CORRUPT', 'reserved bits are set', { structure: 'L2 entry 0' });
    }
    override *extents() {
      // Never asked for.
    }
    override close(): void {
      // Holds nothing.
    }
  }
  expect(readPartitionTable(new BrokenDevice())).toMatchObject({
    scheme: 'none',
    warnings: ['cannot read the disk at offset 0: L2 entry 0: reserved bits are set'],
  });
});

test.each([0, 1, 511, 512, 1000])('a device of %i bytes', (size) => {
  const table = readPartitionTable(new MemoryDevice(new Uint8Array(size)));
  expect(table).toEqual({
    scheme: 'none',
    sectorSize: 512,
    diskId: '',
    partitions: [],
    warnings: [],
  });
});

describePeers(['sfdisk'], 'properties', () => {
  function expectSane(device: MemoryDevice): void {
    const { partitions, scheme } = readPartitionTable(device);
    if (scheme === 'none') expect(partitions).toEqual([]);
    for (const { offset, length } of partitions) {
      expect(length).toBeGreaterThan(0);
      expect(offset + length).toBeLessThanOrEqual(device.size);
    }
  }

  test('garbage behind a signature never throws', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 512, maxLength: 8192, size: 'max' }),
        fc.uint8Array({ minLength: 64, maxLength: 64 }),
        (bytes, entries) => {
          bytes.set(entries, 446);
          for (let at = 446; at < 510; at += 16) bytes[at]! &= 0x80;
          bytes.set([0x55, 0xaa], 510);
          expectSane(new MemoryDevice(bytes));
        },
      ),
      { numRuns: 300 },
    );
  });

  test('changed bytes in real tables never throw', () => {
    const images = [GPT_SCRIPT, 'label: dos\n,1M,c,*\n,,E\n,1M\n,1M\n'].map((script) =>
      readFileSync(makeImage(script.replace('=10M', '=1M').replace('=20M', '=1M'), 6 * MiB)),
    );
    const place = fc.oneof(
      fc.nat(2047),
      fc.nat(1023).map((at) => 2 * MiB + at),
      fc.nat(512).map((at) => 6 * MiB - 1 - at),
    );
    const changes = fc.array(fc.tuple(place, fc.nat(255)), { maxLength: 8 });
    fc.assert(
      fc.property(fc.constantFrom(...images), changes, (image, list) => {
        const bytes = new Uint8Array(image);
        for (const [at, value] of list) bytes[at] = value;
        if (bytes[512] === 0x45) writeHeaderCrc(Buffer.from(bytes.buffer, 512, 512));
        expectSane(new MemoryDevice(bytes));
      }),
      { numRuns: 200 },
    );
  });

  const size = fc.integer({ min: 1, max: 6 });

  test('random MBR layouts as sfdisk reads them', () => {
    const type = fc.constantFrom('83', '82', 'c', '7', 'a5', 'fd', 'ef');
    const entry = fc.tuple(size, type, fc.boolean());
    const layout = fc.record({
      primary: fc.array(entry, { maxLength: 3 }),
      logical: fc.array(entry, { maxLength: 8 }),
    });
    fc.assert(
      fc.property(layout, ({ primary, logical }) => {
        const line = ([sizeMiB, code, boot]: [number, string, boolean]): string =>
          `,${sizeMiB}M,${code}${boot ? ',*' : ''}`;
        const lines = [...primary.map(line), ',,E', ...logical.map(line)];
        const path = makeImage(`label: dos\n${lines.join('\n')}\n`, 200 * MiB);
        expect(expectAsSfdisk(path).warnings).toEqual([]);
      }),
      { numRuns: 10 },
    );
  });

  test('random GPT layouts as sfdisk reads them', () => {
    const entry = fc.record({
      slot: fc.integer({ min: 1, max: 128 }),
      sizeMiB: size,
      type: fc.uuid(),
      name: fc.stringMatching(/^[a-zA-Z0-9 _.äé€-]{0,36}$/),
    });
    const layout = fc.uniqueArray(entry, { maxLength: 12, selector: ({ slot }) => slot });
    fc.assert(
      fc.property(layout, (entries) => {
        const lines = entries.map(
          ({ slot, sizeMiB, type, name }) =>
            `${slot} : size=${sizeMiB}M, type=${type}, name="${name}"`,
        );
        const path = makeImage(`label: gpt\n${lines.join('\n')}\n`, 200 * MiB);
        expect(expectAsSfdisk(path).warnings).toEqual([]);
      }),
      { numRuns: 10 },
    );
  });
});
