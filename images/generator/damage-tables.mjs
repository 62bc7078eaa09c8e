/** Snapshot tables and bitmap directories that are wrong. */

import {
  bitmapBase,
  damaged,
  MAY_BE_READ,
  SNAPSHOT_LENIENCY,
  snapshotBase,
} from './damage-base.mjs';

const MiB = 1024 * 1024;
const BITMAPS = 0x23852875;

/** Offset of the bitmaps extension's data. */
const extension = (b) => b.extension(BITMAPS).offset + 8;
/** Offset of the bitmap directory, whose first entry it is. */
const directory = (b) => Number(b.u64(extension(b) + 16));
/** Offset of the first bitmap's table. */
const table = (b) => Number(b.u64(directory(b)));

const snapshots = [
  [
    'snapshot-table-past-end',
    'The snapshot table is past the end of the file',
    (b) => b.setU64(64, 16 * MiB),
  ],
  [
    'snapshot-table-unaligned',
    'The snapshot table is not aligned to a cluster',
    (b) => b.setU64(64, b.snapshotTable + 8),
  ],
  [
    'snapshot-count-large',
    'The header promises more snapshots than the table holds',
    (b) => b.setU32(60, 3),
  ],
  ['snapshot-count-huge', 'The header promises 65537 snapshots', (b) => b.setU32(60, 65_537)],
  [
    'snapshot-count-limit',
    'The header promises 65536 snapshots, of which one is there',
    (b) => b.setU32(60, 65_536),
  ],
  [
    'snapshot-table-cut',
    'The file ends inside the snapshot table',
    (b) => {
      const at = b.appendCluster();
      b.write(at, b.read(b.snapshotTable, 88));
      b.setU64(64, at);
      b.setU16(b.refcountOf(at), 1);
      b.truncate(at + 50);
    },
  ],
  [
    'snapshot-l1-unaligned',
    'The L1 table of a snapshot is not aligned',
    (b) => b.setU64(b.snapshotTable, b.u64(b.snapshotTable) + 8n),
  ],
  [
    'snapshot-l1-past-end',
    'The L1 table of a snapshot is past the end of the file',
    (b) => b.setU64(b.snapshotTable, 16 * MiB),
  ],
  [
    'snapshot-l1-huge',
    'A snapshot has 2^32 - 1 L1 entries',
    (b) => b.setU32(b.snapshotTable + 8, 0xffff_ffff),
  ],
  [
    'snapshot-l1-empty',
    'A snapshot has no L1 entries, though its disk has bytes',
    (b) => b.setU32(b.snapshotTable + 8, 0),
  ],
  [
    'snapshot-l1-entry',
    'An L1 entry of a snapshot is not aligned',
    (b) => {
      const l1 = Number(b.u64(b.snapshotTable));
      b.setU64(l1, b.u64(l1) + 512n);
    },
  ],
  [
    'snapshot-extra-huge',
    'A snapshot row has 1025 bytes of extra data',
    (b) => b.setU32(b.snapshotTable + 36, 1025),
  ],
  [
    'snapshot-id-long',
    'The id of a snapshot has 65535 bytes',
    (b) => b.setU16(b.snapshotTable + 12, 65_535),
  ],
  [
    'snapshot-disk-size',
    'A snapshot of a disk that its L1 table is too small for',
    (b) => b.setU64(b.snapshotTable + 48, 16 * MiB),
  ],
];

const bitmaps = [
  [
    'bitmap-directory-past-end',
    'The bitmap directory is past the end of the file',
    (b) => b.setU64(extension(b) + 16, 16 * MiB),
  ],
  [
    'bitmap-directory-unaligned',
    'The bitmap directory is not aligned',
    (b) => b.setU64(extension(b) + 16, directory(b) + 8),
  ],
  [
    'bitmap-directory-size',
    'The bitmap directory has other bytes than its entries',
    (b) => b.setU64(extension(b) + 8, 40),
  ],
  [
    'bitmap-directory-huge',
    'The bitmap directory has 2^40 bytes',
    (b) => b.setU64(extension(b) + 8, 1n << 40n),
  ],
  ['bitmap-count-0', 'The bitmaps extension promises no bitmaps', (b) => b.setU32(extension(b), 0)],
  [
    'bitmap-count-3',
    'The bitmaps extension promises a bitmap more than there are',
    (b) => b.setU32(extension(b), 3),
  ],
  [
    'bitmap-count-huge',
    'The bitmaps extension promises 2^32 - 1 bitmaps',
    (b) => b.setU32(extension(b), 0xffff_ffff),
  ],
  [
    'bitmap-extension-reserved',
    'The reserved field of the bitmaps extension is set',
    (b) => b.setU32(extension(b) + 4, 1),
  ],
  [
    'bitmap-extension-short',
    'The bitmaps extension has 16 bytes',
    (b) => b.setU32(extension(b) - 4, 16),
  ],
  [
    'bitmap-flags-reserved',
    'Reserved flags are set in a bitmap directory entry',
    (b) => b.setU32(directory(b) + 12, 0x80),
  ],
  ['bitmap-type', 'A bitmap has an unknown type', (b) => b.setU8(directory(b) + 16, 2)],
  ['bitmap-granularity-8', 'A bitmap has granularity_bits 8', (b) => b.setU8(directory(b) + 17, 8)],
  [
    'bitmap-granularity-32',
    'A bitmap has granularity_bits 32',
    (b) => b.setU8(directory(b) + 17, 32),
  ],
  ['bitmap-name-empty', 'A bitmap has a name of no bytes', (b) => b.setU16(directory(b) + 18, 0)],
  [
    'bitmap-name-long',
    'A bitmap has a name of 1024 bytes',
    (b) => b.setU16(directory(b) + 18, 1024),
  ],
  [
    'bitmap-extra',
    'A bitmap has 2^32 - 1 bytes of extra data',
    (b) => b.setU32(directory(b) + 20, 0xffff_ffff),
  ],
  [
    'bitmap-table-unaligned',
    'A bitmap table is not aligned',
    (b) => b.setU64(directory(b), table(b) + 512),
  ],
  [
    'bitmap-table-past-end',
    'A bitmap table is past the end of the file',
    (b) => b.setU64(directory(b), 16 * MiB),
  ],
  ['bitmap-table-size-0', 'A bitmap table has no entries', (b) => b.setU32(directory(b) + 8, 0)],
  [
    'bitmap-table-size-2',
    'A bitmap table has more entries than the disk needs',
    (b) => b.setU32(directory(b) + 8, 2),
  ],
  [
    'bitmap-table-size-huge',
    'A bitmap table has 2^32 - 1 entries',
    (b) => b.setU32(directory(b) + 8, 0xffff_ffff),
  ],
  [
    'bitmap-table-reserved',
    'Reserved bits are set in a bitmap table entry',
    (b) => b.updateU64(table(b), (entry) => entry | 4n),
  ],
  [
    'bitmap-data-past-end',
    'The data of a bitmap is past the end of the file',
    (b) => b.setU64(table(b), 16 * MiB),
  ],
  [
    'bitmap-data-unaligned',
    'The data of a bitmap is not aligned',
    (b) => b.updateU64(table(b), (entry) => entry + 512n),
  ],
  ['bitmap-data-leak', 'A bitmap does not own its data any more', (b) => b.setU64(table(b), 0)],
];

export const tableDamage = [
  ...snapshots.map((row) => damaged(snapshotBase, 'snapshots', [...row, SNAPSHOT_LENIENCY])),
  ...bitmaps.map((row) => damaged(bitmapBase, 'bitmaps', [...row, MAY_BE_READ])),
  {
    name: 'bitmap-names-equal',
    description: 'Two bitmaps of one name',
    features: ['bitmaps'],
    make(w, image) {
      bitmapBase(w, image);
      w.img('bitmap', '--remove', image, 'second');
      w.img('bitmap', '--add', image, 'other');
      w.noteSoundContent(image);
      w.patch(image, 'the names of both bitmaps are "first"', (b) => {
        const second = directory(b) + 32;
        b.write(second + 24, Buffer.from('first'));
      });
    },
  },
];
