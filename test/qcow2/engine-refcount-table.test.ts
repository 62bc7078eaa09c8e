import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { MemoryDevice } from '../../src/device/memory.ts';
import { checkImage } from '../../src/operations/check.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { CrashStates } from '../support/crash-states.ts';
import { itPeers } from '../support/peers.ts';
import { qemuImg } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import { temporaryDirectory } from '../support/temp.ts';

/** 64 clusters of 512 bytes: as many as a block of 64-bit counts counts. */
const BLOCK_CLUSTERS = 64;
const BLOCK_BYTES = BLOCK_CLUSTERS * 512;

/** An image whose L1 table, and with it that of a snapshot, takes two blocks' clusters. */
function emptyImage(): Buffer {
  const path = join(temporaryDirectory(), 'disk.qcow2');
  const options = 'cluster_size=512,refcount_bits=64';
  qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path, '256M');
  return readFileSync(path);
}

function open(file: RecordingFile | MemoryDevice): Qcow2Image {
  const writable = file instanceof RecordingFile;
  return new Qcow2Image({ path: 'disk.qcow2', file, header: readHeader(file), writable });
}

itPeers(
  ['qemu-img'],
  'a refcount block that another new block counts is never in the table without that one',
  () => {
    const empty = emptyImage();
    let several = 0;
    // One of them leaves no room for the new blocks in the last one that is there.
    for (let used = 0; used < BLOCK_CLUSTERS; used++) {
      const log: LoggedOperation[] = [];
      const image = open(new RecordingFile(empty, log));
      image.write(Buffer.alloc(BLOCK_BYTES + used * 512, 0xa5), 0);
      image.flush();
      const before = log.length;
      image.createSnapshot('s');
      const states = new CrashStates(log, [empty]);
      const random = new Random(used);
      for (let position = before + 1; position <= log.length; position++) {
        states.advanceTo(position);
        const { operation } = log[position - 1]!;
        // Entries of the table are written one by one.
        if (operation.kind !== 'write' || operation.bytes.length !== 8) continue;
        several++;
        for (let choice = 0; choice < 6; choice++) {
          const [bytes] = states.torn(random);
          const { corruptions = 0 } = checkImage(open(new MemoryDevice(bytes!)));
          expect(corruptions, `${used} clusters more in use`).toBe(0);
        }
      }
    }
    expect(several).toBeGreaterThan(BLOCK_CLUSTERS);
  },
);
