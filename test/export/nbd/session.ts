/** A client's requests to a transmission without a socket. */

import type { BlockDevice } from '../../../src/device/block-device.ts';
import { BufferPool, ReplyWriter } from '../../../src/export/nbd/reply-writer.ts';
import type { TransmissionContext } from '../../../src/export/nbd/transmission.ts';
import { Transmission } from '../../../src/export/nbd/transmission.ts';

/** What came of it. */
export interface Session {
  sent: Buffer;
  result: string;
  errors: string[];
  /** Buffers that were sent. */
  writes: number;
  problem: string;
  /** How often it was another client's turn. */
  turns: number;
}

/** Plays a client whose bytes arrive in `chunks`, and which reads all replies at once. */
export function talk(
  chunks: readonly Uint8Array[],
  device: BlockDevice,
  pool = new BufferPool(),
  agreed: Pick<
    TransmissionContext,
    'style' | 'contexts' | 'isWritable' | 'direct' | 'receive' | 'resize' | 'stats'
  > = {},
): Session {
  const sent: Buffer[] = [];
  const errors: string[] = [];
  const writer = new ReplyWriter(pool, (buffer, length) => {
    sent.push(Buffer.from(buffer.subarray(0, length)));
    pool.give(buffer);
  });
  const transmission = new Transmission(device, {
    writer,
    pool,
    isFull: () => false,
    ...agreed,
    onError: (error) => errors.push((error as Error).message),
  });
  let input = Buffer.alloc(0);
  let result = 'wait';
  let turns = 0;
  for (const chunk of chunks) {
    input = Buffer.concat([input, chunk]);
    do {
      result = transmission.run(input, 0);
      input = input.subarray(transmission.position);
      if (result === 'yield') turns++;
    } while (result === 'yield');
    if (result !== 'wait') break;
  }
  const { problem } = transmission;
  return { sent: Buffer.concat(sent), result, errors, writes: sent.length, problem, turns };
}
