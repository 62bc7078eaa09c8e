/** A client's side of a handshake without a socket. */

import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { ExportTable } from '../../../src/export/nbd/exports.ts';
import type { NbdExport } from '../../../src/export/nbd/exports.ts';
import { Handshake } from '../../../src/export/nbd/handshake.ts';
import type { TlsMode } from '../../../src/export/nbd/handshake.ts';
import { clientFlags, GREETING } from './wire.ts';

export const EXPORTS: NbdExport[] = [
  { name: 'disk', description: 'the disk', device: new NullDevice(2 ** 40 + 512) },
  { name: 'disk/1', device: new MemoryDevice(new Uint8Array(1024)) },
];

/** Stands where the connection would become an encrypted one. */
export const TLS_STARTED = Buffer.from('TLS');

/** What came of a negotiation. */
export interface Outcome {
  sent: Buffer;
  /** `open` if the server waits for more. */
  state: 'open' | 'close' | 'transmission';
  exportName?: string;
  style?: string;
  /** Names of the contexts that were agreed on. */
  contexts?: string[];
  reason?: string;
  warnings: string[];
  /** What the handshake left for the transmission phase. */
  rest: Buffer;
  mostKept: number;
}

/** Plays a client whose bytes arrive in `chunks`. */
export function negotiate(
  chunks: readonly Uint8Array[],
  exports = EXPORTS,
  tls: TlsMode = 'off',
): Outcome {
  const handshake = new Handshake(new ExportTable(exports), tls);
  const sent = [Buffer.from(handshake.greeting())];
  const warnings: string[] = [];
  let input = Buffer.alloc(0);
  let mostKept = 0;
  for (const [index, chunk] of chunks.entries()) {
    input = Buffer.concat([input, chunk]);
    for (;;) {
      const step = handshake.step(input);
      if (step.next === 'wait') break;
      if (step.reply !== undefined) sent.push(Buffer.from(step.reply));
      const base = { sent: Buffer.concat(sent), warnings, mostKept };
      if (step.next === 'close') {
        return { ...base, state: 'close', reason: step.reason, rest: input };
      }
      input = input.subarray(step.consumed);
      if (step.next === 'transmission') {
        const rest = Buffer.concat([input, ...chunks.slice(index + 1)]);
        const { used, style, contexts } = step;
        const agreed = { style, contexts: contexts.map(({ name }) => name) };
        return { ...base, ...agreed, state: 'transmission', exportName: used.name, rest };
      }
      if (step.next === 'starttls') {
        handshake.secured();
        sent.push(TLS_STARTED);
      } else if (step.warning !== undefined) warnings.push(step.warning);
    }
    mostKept = Math.max(mostKept, input.length);
  }
  return { sent: Buffer.concat(sent), state: 'open', warnings, rest: input, mostKept };
}

/** What the server answers to options of a client of fixed newstyle, after its greeting. */
export function answer(...options: Buffer[]): Buffer {
  return negotiate([clientFlags(), ...options]).sent.subarray(GREETING.length);
}
