/** Whatever bytes arrive as a request: an answer with an error or data comes back, nothing throws. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { NullDevice } from '../../../src/device/memory.ts';
import { directoryOf, fileOf, readBody, requestBytes, TestSession, textFile } from './wire.ts';

function session(): TestSession {
  return new TestSession([
    fileOf('disk.raw', new NullDevice(2 ** 40)),
    directoryOf('partitions', [textFile('1-a.raw', 'a'), textFile('2-b.raw', 'b')]),
  ]);
}

/** Largest payload that a reply to any request may have. */
const MAX_PAYLOAD = 1024 * 1024;
const OPCODES = Array.from({ length: 60 }, (_, index) => index);

describe('malformed requests', () => {
  it('of random bytes are answered', () => {
    const target = session();
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        const reply = target.raw(bytes);
        if (bytes.length < 40) expect(reply).toBeUndefined();
        else expect(reply!.errno).toBeGreaterThan(0);
      }),
      { numRuns: 2000 },
    );
  });

  it('with a good header and a random body are answered within bounds', () => {
    const target = session();
    fc.assert(
      fc.property(
        fc.constantFrom(...OPCODES),
        fc.oneof(fc.nat(6), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }).map(Number)),
        fc.uint8Array({ maxLength: 120 }),
        (opcode, nodeId, body) => {
          const id = Math.min(nodeId, Number.MAX_SAFE_INTEGER);
          const reply = target.raw(requestBytes({ opcode, nodeId: id }, body));
          if (reply === undefined) return;
          expect(reply.errno).toBeGreaterThanOrEqual(0);
          expect(reply.errno).toBeLessThan(134);
          expect(reply.payload.length).toBeLessThanOrEqual(MAX_PAYLOAD);
          if (reply.errno !== 0) expect(reply.payload).toHaveLength(0);
        },
      ),
      { numRuns: 5000 },
    );
  });

  it('cut off at every length are answered', () => {
    const target = session();
    for (const opcode of OPCODES) {
      const whole = requestBytes({ opcode, nodeId: 1 }, Buffer.alloc(128, 1));
      for (let length = 0; length < whole.length; length++) {
        const cut = Buffer.from(whole.subarray(0, length));
        if (length >= 40) expect(target.raw(cut)!.errno).toBe(5);
        if (length >= 4) cut.writeUInt32LE(length, 0);
        target.raw(cut);
      }
    }
  });

  it('with extreme offsets and sizes are answered within bounds', () => {
    const target = session();
    const inode = target.find('disk.raw');
    const values = [0n, 1n, 4095n, 2n ** 31n, 2n ** 32n, 2n ** 40n, 2n ** 53n, 2n ** 64n - 1n];
    for (const offset of values) {
      for (const size of [0, 1, 4096, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2 ** 32 - 1]) {
        for (const opcode of [15, 28, 44]) {
          for (const node of [1, inode]) {
            const { payload } = target.ask(opcode, node, readBody(offset, size));
            expect(payload.length).toBeLessThanOrEqual(Math.min(size, MAX_PAYLOAD));
          }
        }
      }
    }
  });
});
