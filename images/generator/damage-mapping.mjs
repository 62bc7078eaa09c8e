/** L1 and L2 entries that are wrong, and compressed data that is. */

import {
  damaged,
  extendedBase,
  PAST_END,
  plainBase,
  SNAPSHOT_LENIENCY,
  snapshotBase,
} from './damage-base.mjs';

const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
const MiB = 1024 * 1024;

const plain = [
  [
    'l1-reserved',
    'Reserved bits are set in an L1 entry',
    (b) => b.updateU64(b.l1, (entry) => entry | (1n << 57n) | 2n),
  ],
  [
    'l1-unaligned',
    'An L1 entry is not aligned to a cluster',
    (b) => b.updateU64(b.l1, (entry) => entry + 512n),
  ],
  [
    'l1-past-end',
    'An L1 entry points past the end of the file',
    (b) => b.setU64(b.l1, COPIED | BigInt(16 * MiB)),
    PAST_END,
  ],
  [
    'l1-far-past-end',
    'An L1 entry points to the end of the 56-bit range',
    (b) => b.setU64(b.l1, COPIED | 0x00ff_ffff_ffff_f000n),
    { deviation: { code: 'CORRUPT', reason: 'offsets above 2^53 are refused' } },
  ],
  [
    'l1-is-header',
    'An L1 entry points to the L1 table itself',
    (b) => b.setU64(b.l1, COPIED | BigInt(b.l1)),
  ],
  [
    'l1-is-l2',
    'An L1 entry points to the L1 table itself, behind whose end stands an L2 entry',
    (b) => {
      const data = b.dataOffset(2);
      b.setU64(b.l1 + 8 * 5, COPIED | BigInt(data));
      b.setU64(b.l1, COPIED | BigInt(b.l1));
    },
  ],
  [
    'l2-reserved',
    'Reserved bits are set in an L2 entry',
    (b) => b.updateU64(b.l2Entry(1), (entry) => entry | (1n << 60n) | 4n),
  ],
  [
    'l2-reserved-unallocated',
    'A reserved bit is set in an L2 entry without a cluster',
    (b) => b.setU64(b.l2Entry(50), 1n << 58n),
  ],
  [
    'l2-unaligned',
    'An L2 entry is not aligned to a cluster',
    (b) => b.updateU64(b.l2Entry(1), (entry) => entry + 512n),
  ],
  [
    'l2-zero-unaligned',
    'A zero cluster has an unaligned allocation',
    (b) => b.setU64(b.l2Entry(1), b.u64(b.l2Entry(1)) + 513n),
  ],
  [
    'l2-past-end',
    'An L2 entry points past the end of the file',
    (b) => b.setU64(b.l2Entry(1), COPIED | BigInt(16 * MiB)),
    PAST_END,
  ],
  [
    'l2-zero-past-end',
    'A zero cluster has an allocation past the end of the file',
    (b) => b.setU64(b.l2Entry(1), COPIED | BigInt(16 * MiB) | 1n),
  ],
  [
    'l2-at-end',
    'An L2 entry points to the very end of the file',
    (b) =>
      b.setU64(b.l2Entry(1), COPIED | BigInt(Math.ceil(b.length / b.clusterSize) * b.clusterSize)),
    PAST_END,
  ],
  [
    'l2-tail-cut',
    'The file ends inside the last data cluster',
    (b) => b.truncate(b.dataOffset(30) + 1000),
  ],
  [
    'l2-shared',
    'Two L2 entries point to one cluster',
    (b) => b.setU64(b.l2Entry(3), b.u64(b.l2Entry(2))),
  ],
  [
    'l2-is-header',
    'An L2 entry points to the refcount table',
    (b) => b.setU64(b.l2Entry(3), COPIED | BigInt(b.refcountTable)),
  ],
  [
    'l2-is-l1',
    'An L2 entry points to the L1 table',
    (b) => b.setU64(b.l2Entry(3), COPIED | BigInt(b.l1)),
  ],
  [
    'l2-is-l2',
    'An L2 entry points to its own table',
    (b) => b.setU64(b.l2Entry(3), COPIED | BigInt(b.l2())),
  ],
  ['l2-copied-alone', 'An L2 entry has only COPIED set', (b) => b.setU64(b.l2Entry(50), COPIED)],
  [
    'compressed-past-end',
    'A compressed cluster lies past the end of the file',
    (b) => b.setU64(b.l2Entry(10), COMPRESSED | BigInt(16 * MiB)),
    PAST_END,
  ],
  [
    'compressed-far',
    'A compressed cluster lies at the end of the offset range',
    (b) => b.setU64(b.l2Entry(10), COMPRESSED | ((1n << 58n) - 1n)),
  ],
  [
    'compressed-garbage',
    'A compressed stream is garbage',
    (b) => {
      const host = Number(b.u64(b.l2Entry(10)) & 0xffff_ffffn);
      b.write(host, Buffer.alloc(20, 0xff));
    },
  ],
  [
    'compressed-short',
    'A compressed stream is of fewer bytes than a cluster',
    (b) => {
      const host = Number(b.u64(b.l2Entry(10)) & 0xffff_ffffn);
      // A stored deflate block of five bytes.
      b.write(host, Buffer.from([1, 5, 0, 0xfa, 0xff, 0x68, 0x65, 0x6c, 0x6c, 0x6f]));
    },
  ],
  [
    'compressed-one-sector',
    'A compressed stream needs more sectors than its entry says',
    (b) => {
      const host = Number(b.u64(b.l2Entry(11)) & 0xffff_ffffn);
      // A stored block of one cluster, of which the entry covers less than a sector.
      b.write(host, Buffer.from([1, 0x00, 0x10, 0xff, 0xef]));
    },
  ],
];

const extended = [
  [
    'extended-both-bits',
    'A subcluster is both allocated and zero',
    (b) => b.updateU64(b.l2Entry(0) + 8, (bitmap) => bitmap | (1n << 32n)),
  ],
  [
    'extended-allocated-nowhere',
    'A subcluster is allocated but its cluster has no offset',
    (b) => b.setU64(b.l2Entry(5) + 8, 1n),
  ],
  [
    'extended-compressed-bitmap',
    'A compressed cluster has a subcluster bitmap',
    (b) => b.setU64(b.l2Entry(3) + 8, 1n),
  ],
  [
    'extended-zero-flag',
    'Bit 0 of an extended entry is set',
    (b) => b.updateU64(b.l2Entry(0), (entry) => entry | 1n),
  ],
  [
    'extended-unaligned',
    'An extended entry is not aligned to a cluster',
    (b) => b.updateU64(b.l2Entry(0), (entry) => entry + 512n),
  ],
];

export const mappingDamage = [
  ...plain.map((row) => damaged(plainBase, 'mapping', row)),
  ...extended.map((row) => damaged(extendedBase, 'mapping', row)),
  damaged((w, image) => plainBase(w, image, { options: ',compat=0.10' }), 'mapping', [
    'version-2-zero-flag',
    'A zero cluster in a version 2 image',
    (b) => b.updateU64(b.l2Entry(1), (entry) => entry | 1n),
  ]),
  damaged((w, image) => plainBase(w, image, { options: ',compression_type=zstd' }), 'mapping', [
    'zstd-garbage',
    'A zstd frame is garbage',
    (b) => b.write(Number(b.u64(b.l2Entry(10)) & 0xffff_ffffn), Buffer.alloc(16, 0xff)),
  ]),
  damaged(snapshotBase, 'mapping', [
    'snapshot-l2-past-end',
    'An L2 entry of a snapshot points past the end of the file',
    (b) => {
      const l2 = Number(b.u64(Number(b.u64(b.snapshotRows[0]))) & 0x00ff_ffff_ffff_fe00n);
      b.setU64(l2 + 8 * 3, 16 * MiB);
    },
    SNAPSHOT_LENIENCY,
  ]),
];
