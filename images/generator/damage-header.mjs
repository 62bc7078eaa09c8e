/** Headers that are wrong, and references to files that must not be followed. */

import {
  damaged,
  extendedBase,
  MAY_BE_READ,
  PAST_END,
  plainBase,
  SNAPSHOT_LENIENCY,
  snapshotBase,
} from './damage-base.mjs';

const MiB = 1024 * 1024;

const plain = [
  ['header-magic', 'The magic is not QFI and 0xfb', (b) => b.setU8(3, 0xfa)],
  ['header-version-1', 'The version is 1', (b) => b.setU32(4, 1)],
  ['header-version-4', 'The version is 4', (b) => b.setU32(4, 4)],
  ['header-cluster-bits-8', 'cluster_bits is 8', (b) => b.setU32(20, 8)],
  ['header-cluster-bits-22', 'cluster_bits is 22', (b) => b.setU32(20, 22)],
  ['header-crypt-method', 'crypt_method is 3', (b) => b.setU32(32, 3)],
  ['header-l1-size-small', 'The L1 table is too small for the disk', (b) => b.setU64(24, 4 * MiB)],
  ['header-l1-size-huge', 'The L1 table has 2^22 + 1 entries', (b) => b.setU32(36, (1 << 22) + 1)],
  ['header-l1-unaligned', 'The L1 table is not aligned', (b) => b.setU64(40, b.l1 + 8)],
  [
    'header-l1-past-end',
    'The L1 table is past the end of the file',
    (b) => b.setU64(40, 16 * MiB),
    PAST_END,
  ],
  ['header-size-huge', 'The disk has 2^63 bytes', (b) => b.setU64(24, 1n << 63n)],
  [
    'header-refcount-table-unaligned',
    'The refcount table is not aligned',
    (b) => b.setU64(48, b.refcountTable + 8),
  ],
  [
    'header-refcount-table-past-end',
    'The refcount table is past the end of the file',
    (b) => b.setU64(48, 16 * MiB),
  ],
  [
    'header-refcount-table-0',
    'The refcount table has no clusters',
    (b) => b.setU32(56, 0),
    MAY_BE_READ,
  ],
  [
    'header-refcount-table-huge',
    'The refcount table has more than 8 MiB',
    (b) => b.setU32(56, 2049),
  ],
  ['header-refcount-order-7', 'refcount_order is 7', (b) => b.setU32(96, 7)],
  ['header-length-96', 'header_length is 96', (b) => b.setU32(100, 96)],
  ['header-length-8192', 'header_length is larger than a cluster', (b) => b.setU32(100, 8192)],
  [
    'header-length-odd',
    'header_length is not a multiple of 8',
    (b) => b.setU32(100, 109),
    { deviation: { code: 'CORRUPT', reason: 'the specification wants a multiple of 8' } },
  ],
  [
    'header-compression-bit',
    'The compression type bit is set but the type is zlib',
    (b) => b.setU64(72, 8),
  ],
  [
    'header-compression-type',
    'The compression type is zstd but its bit is not set',
    (b) => b.setU8(104, 1),
  ],
  [
    'header-compression-unknown',
    'The compression type is 2',
    (b) => {
      b.setU64(72, 8);
      b.setU8(104, 2);
    },
  ],
  [
    'header-extended-l2-small',
    'Extended L2 entries with clusters of 4 KiB',
    (b) => b.setU64(72, 16),
  ],
  [
    'header-extension-long',
    'A header extension goes past the first cluster',
    (b) => {
      b.setU32(112, 0x12345678);
      b.setU32(116, 5000);
    },
  ],
  [
    'header-backing-name-long',
    'The backing file name has 1024 bytes',
    (b) => {
      b.setU64(8, 512);
      b.setU32(16, 1024);
    },
  ],
  [
    'header-backing-offset',
    'The backing file name is outside the first cluster',
    (b) => {
      b.setU64(8, 5000);
      b.setU32(16, 10);
    },
  ],
  [
    'header-data-file-missing-name',
    'An external data file that has no name',
    (b) => b.setU64(72, 4),
  ],
  ['header-cut-71', 'The file has 71 bytes', (b) => b.truncate(71)],
  ['header-cut-100', 'The file has 100 bytes', (b) => b.truncate(100)],
  ['header-cut-1', 'The file has one byte', (b) => b.truncate(1)],
];

/** Images whose references lead nowhere good. */
const references = [
  {
    name: 'backing-itself',
    description: 'An image that is its own backing file',
    features: ['backing-file', 'cycle'],
    unanswered: 'QEMU follows the cycle for ever',
    make(w, image) {
      w.create(image, '64k', 'cluster_size=4k');
      w.img('rebase', '-u', '-b', image, '-F', 'qcow2', image);
    },
  },
  {
    name: 'backing-missing',
    description: 'A backing file that is not there',
    features: ['backing-file'],
    make: (w, image) =>
      w.create(image, '64k', 'cluster_size=4k', '-u', '-b', 'nowhere.raw', '-F', 'raw') &&
      undefined,
  },
  {
    name: 'backing-json',
    description: 'A backing file named as a json: document that reads a file of the host',
    features: ['backing-file', 'policy'],
    deviation: { code: 'REFUSED', reason: 'json: names are opened only when asked for' },
    make(w, image) {
      w.file('backing-json-secret.raw', Buffer.alloc(4096, 'secret '), '4096 bytes of "secret "');
      const name =
        'json:{"driver":"raw","file":{"driver":"file","filename":"backing-json-secret.raw"}}';
      w.create(image, '64k', 'cluster_size=4k', '-u', '-b', name, '-F', 'raw');
      return ['backing-json-secret.raw'];
    },
  },
  {
    name: 'backing-protocol',
    description: 'A backing file on a server',
    features: ['backing-file', 'policy'],
    make: (w, image) =>
      w.create(
        image,
        '64k',
        'cluster_size=4k',
        '-u',
        '-b',
        'nbd+unix:///disk?socket=/nonexistent',
        '-F',
        'raw',
      ) && undefined,
  },
  {
    name: 'backing-undeclared',
    description: 'A backing file whose format is not declared',
    features: ['backing-file', 'policy'],
    deviation: { code: 'REFUSED', reason: 'a format that is not declared is never probed' },
    make(w, image) {
      w.file('backing-undeclared-base.raw', Buffer.alloc(65536, 'base '), '64 KiB of "base "');
      w.create(image, '64k', 'cluster_size=4k', '-b', 'backing-undeclared-base.raw', '-F', 'raw');
      w.patch(image, 'no header extensions', (b) => b.write(b.headerLength, Buffer.alloc(8)));
      return ['backing-undeclared-base.raw'];
    },
  },
  {
    name: 'data-file-missing',
    description: 'An external data file that is not there',
    features: ['data-file'],
    make(w, image) {
      w.create(image, '64k', 'cluster_size=4k,data_file=gone.data');
      w.run('rm', 'gone.data');
    },
  },
];

export const headerDamage = [
  ...plain.map((row) => damaged(plainBase, 'header', row)),
  damaged(extendedBase, 'header', [
    'header-extended-l2-off',
    'The extended L2 bit was cleared',
    (b) => b.setU64(72, 0),
    PAST_END,
  ]),
  damaged(snapshotBase, 'header', [
    'header-snapshot-offset-0',
    'Snapshots at offset 0',
    (b) => b.setU64(64, 0),
    SNAPSHOT_LENIENCY,
  ]),
  ...references,
];
