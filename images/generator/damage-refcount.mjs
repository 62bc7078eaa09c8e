/** Refcounts that are wrong, and refcount tables that are. */

import { damaged, plainBase, snapshotBase } from './damage-base.mjs';

const COPIED = 1n << 63n;
const MiB = 1024 * 1024;

const plain = [
  [
    'leaked-cluster',
    'A cluster at the end that nothing refers to has refcount 1',
    (b) => {
      const offset = b.appendCluster();
      b.setU16(b.refcountOf(offset), 1);
    },
  ],
  [
    'leaked-clusters',
    'Three clusters that nothing refers to have refcounts 1, 2 and 7',
    (b) => {
      for (const count of [1, 2, 7]) b.setU16(b.refcountOf(b.appendCluster()), count);
    },
  ],
  [
    'refcount-data-0',
    'A data cluster has refcount 0',
    (b) => b.setU16(b.refcountOf(b.dataOffset(1)), 0),
  ],
  [
    'refcount-data-2',
    'A data cluster that is used once has refcount 2',
    (b) => b.setU16(b.refcountOf(b.dataOffset(1)), 2),
  ],
  ['refcount-header-0', 'The header has refcount 0', (b) => b.setU16(b.refcountOf(0), 0)],
  ['refcount-l1-0', 'The L1 table has refcount 0', (b) => b.setU16(b.refcountOf(b.l1), 0)],
  ['refcount-l2-0', 'An L2 table has refcount 0', (b) => b.setU16(b.refcountOf(b.l2()), 0)],
  ['refcount-l2-3', 'An L2 table has refcount 3', (b) => b.setU16(b.refcountOf(b.l2()), 3)],
  [
    'refcount-table-0',
    'The refcount table has refcount 0',
    (b) => b.setU16(b.refcountOf(b.refcountTable), 0),
  ],
  [
    'refcount-block-0',
    'The refcount block has refcount 0',
    (b) => b.setU16(b.refcountOf(b.refcountBlock()), 0),
  ],
  [
    'refcount-compressed-1',
    'A host cluster with two compressed clusters has refcount 1',
    (b) => {
      const host = Number(b.u64(b.l2Entry(10)) & 0xffff_ffffn);
      b.setU16(b.refcountOf(host - (host % b.clusterSize)), 1);
    },
  ],
  [
    'refcount-block-missing',
    'The refcount table has no block at all',
    (b) => b.setU64(b.refcountTable, 0),
  ],
  [
    'refcount-block-past-end',
    'A refcount block is past the end of the file',
    (b) => b.setU64(b.refcountTable, 16 * MiB),
  ],
  [
    'refcount-block-unaligned',
    'A refcount block is not aligned to a cluster',
    (b) => b.updateU64(b.refcountTable, (entry) => entry + 512n),
  ],
  [
    'refcount-block-twice',
    'Two entries of the refcount table name one block',
    (b) => b.setU64(b.refcountTable + 8, b.u64(b.refcountTable)),
  ],
  [
    'refcount-block-is-header',
    'A refcount block lies on the header',
    (b) => {
      b.setU64(b.refcountTable + 8, 0);
      b.setU64(b.refcountTable + 16, b.clusterSize * 0 + b.l1);
    },
  ],
  [
    'refcount-table-reserved',
    'A reserved bit is set in a refcount table entry',
    (b) => b.updateU64(b.refcountTable, (entry) => entry | 4n),
  ],
  [
    'refcount-table-offset-high',
    'An unused entry of the refcount table points far away',
    (b) => b.setU64(b.refcountTable + 80, 1n << 50n),
  ],
  [
    'copied-missing-l2',
    'COPIED is not set for a cluster with refcount 1',
    (b) => b.updateU64(b.l2Entry(2), (entry) => entry & ~COPIED),
  ],
  [
    'copied-missing-l1',
    'COPIED is not set for an L2 table with refcount 1',
    (b) => b.updateU64(b.l1, (entry) => entry & ~COPIED),
  ],
  [
    'copied-compressed',
    'COPIED is set for a compressed cluster',
    (b) => b.updateU64(b.l2Entry(10), (entry) => entry | COPIED),
  ],
  [
    'copied-and-leak',
    'COPIED is missing, and a cluster is leaked',
    (b) => {
      b.updateU64(b.l2Entry(2), (entry) => entry & ~COPIED);
      b.setU16(b.refcountOf(b.appendCluster()), 1);
    },
  ],
];

const snapshots = [
  [
    'copied-shared-l2',
    'COPIED is set for a cluster that a snapshot shares',
    (b) => b.updateU64(b.l2Entry(2), (entry) => entry | COPIED),
  ],
  [
    'refcount-shared-1',
    'A cluster that a snapshot shares has refcount 1',
    (b) => b.setU16(b.refcountOf(b.dataOffset(2)), 1),
  ],
  [
    'refcount-snapshot-table-0',
    'The snapshot table has refcount 0',
    (b) => b.setU16(b.refcountOf(b.snapshotTable), 0),
  ],
  [
    'refcount-snapshot-l1-0',
    'The L1 table of a snapshot has refcount 0',
    (b) => b.setU16(b.refcountOf(Number(b.u64(b.snapshotRows[0]))), 0),
  ],
  [
    'snapshots-forgotten',
    'The header says that there are no snapshots: everything of theirs is leaked',
    (b) => {
      b.setU32(60, 0);
      b.setU64(64, 0);
    },
  ],
];

export const refcountDamage = [
  ...plain.map((row) => damaged(plainBase, 'refcounts', row)),
  ...snapshots.map((row) => damaged(snapshotBase, 'refcounts', row)),
  damaged((w, image) => plainBase(w, image, { options: ',refcount_bits=1' }), 'refcounts', [
    'refcount-bits-1-leak',
    'A leaked cluster in an image with refcounts of 1 bit',
    (b) => {
      const cluster = b.appendCluster() / b.clusterSize;
      const at = b.refcountBlock() + (cluster >> 3);
      b.setU8(at, b.u8(at) | (1 << (cluster & 7)));
    },
  ]),
  damaged((w, image) => plainBase(w, image, { options: ',refcount_bits=64' }), 'refcounts', [
    'refcount-bits-64-huge',
    'A refcount of 64 bits that is all ones',
    (b) => b.setU64(b.refcountBlock() + 8 * (b.dataOffset(1) / b.clusterSize), (1n << 64n) - 1n),
  ]),
];
