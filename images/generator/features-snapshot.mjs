/** Internal snapshots and bitmaps. */

const EPOCH = 1_704_067_200;
const BITMAPS = 0x23852875;

function dated(w, image) {
  w.patch(image, 'the dates of the snapshots', (bytes) => bytes.dateSnapshots(EPOCH));
}

/** Makes room for, and writes, a snapshot table with other extra data or texts. */
function rewriteSnapshotTable(bytes, rows) {
  const table = Buffer.concat(rows);
  bytes.write(bytes.snapshotTable, table);
}

/** A snapshot row like the one at `offset`, with other extra data. */
function rowWithExtra(bytes, offset, extra) {
  const old = {
    extra: bytes.u32(offset + 36),
    id: bytes.u16(offset + 12),
    name: bytes.u16(offset + 14),
  };
  const head = bytes.read(offset, 40);
  head.writeUInt32BE(extra.length, 36);
  const texts = bytes.read(offset + 40 + old.extra, old.id + old.name);
  const row = Buffer.concat([head, extra, texts]);
  return Buffer.concat([row, Buffer.alloc((8 - (row.length % 8)) % 8)]);
}

/** An image with two snapshots of different content. */
function twoSnapshots(w, image, { options = '' } = {}) {
  w.create(image, '128k', `cluster_size=4k${options}`);
  w.io(image, 'write -P 0xb1 0 20k', 'write -c -P 0xb2 40k 4k');
  w.img('snapshot', '-c', 'first', image);
  w.io(image, 'write -P 0xb3 8k 8k', 'write -P 0xb4 64k 4k');
  w.img('snapshot', '-c', 'second', image);
  w.io(image, 'write -P 0xb5 0 4k', 'write -P 0xb6 41k 1k', 'write -P 0xb7 100k 4k');
  dated(w, image);
}

export const snapshotCases = [
  {
    name: 'snapshots',
    description: 'Two snapshots and a disk that share data, compressed too',
    features: ['snapshots', 'compressed'],
    make: (w, image) => twoSnapshots(w, image),
  },
  {
    name: 'snapshots-version-2',
    description: 'Snapshots of a version 2 image',
    features: ['snapshots', 'version-2'],
    make: (w, image) => twoSnapshots(w, image, { options: ',compat=0.10' }),
  },
  {
    name: 'snapshots-version-2-no-extra',
    description: 'Snapshot rows without extra data, as the first writers made them',
    features: ['snapshots', 'version-2'],
    make(w, image) {
      twoSnapshots(w, image, { options: ',compat=0.10' });
      w.patch(image, 'rows without extra data', (bytes) =>
        rewriteSnapshotTable(
          bytes,
          bytes.snapshotRows.map((row) => rowWithExtra(bytes, row, Buffer.alloc(0))),
        ),
      );
    },
  },
  {
    name: 'snapshots-long-extra',
    description: 'A snapshot row with more extra data than anyone knows',
    features: ['snapshots'],
    make(w, image) {
      twoSnapshots(w, image);
      w.patch(image, 'rows with 40 bytes of extra data', (bytes) =>
        rewriteSnapshotTable(
          bytes,
          bytes.snapshotRows.map((row) =>
            rowWithExtra(
              bytes,
              row,
              Buffer.concat([bytes.read(row + 40, 24), Buffer.alloc(16, 0x5a)]),
            ),
          ),
        ),
      );
    },
  },
  {
    name: 'snapshots-disk-size',
    description: 'Snapshots of a disk that was larger and smaller then',
    features: ['snapshots', 'resize'],
    make(w, image) {
      w.create(image, '64k', 'cluster_size=512');
      w.io(image, 'write -P 0xc1 0 64k');
      w.img('snapshot', '-c', 'small', image);
      w.img('resize', '-q', image, '160k');
      w.io(image, 'write -P 0xc2 60k 90k');
      w.img('snapshot', '-c', 'large', image);
      w.img('snapshot', '-a', 'small', image);
      w.io(image, 'write -P 0xc3 1k 1k');
      dated(w, image);
    },
  },
  {
    name: 'snapshots-same-name',
    description: 'Three snapshots of one name, one of which is also the id of another',
    features: ['snapshots'],
    make(w, image) {
      w.create(image, '32k', 'cluster_size=4k');
      for (const [index, name] of ['same', 'same', '1'].entries()) {
        w.io(image, `write -P ${0xd0 + index} 0 ${4 + 4 * index}k`);
        w.img('snapshot', '-c', name, image);
      }
      dated(w, image);
    },
  },
  {
    name: 'snapshot-vm-state',
    description: 'A snapshot with 20000 bytes of VM state, which lies past the end of the disk',
    features: ['snapshots', 'vm-state'],
    make(w, image) {
      w.create(image, '64k', 'cluster_size=512');
      w.io(image, 'write -P 0xe1 0 10k', 'write -P 0xe2 32k 20000');
      w.img('snapshot', '-c', 'running', image);
      w.patch(
        image,
        'disk size 32 KiB, here and in the snapshot; VM state of 20000 bytes',
        (bytes) => {
          const [row] = bytes.snapshotRows;
          bytes.setU64(24, 32 * 1024);
          bytes.setU64(row + 24, 90_061_000_000_000n);
          bytes.setU32(row + 32, 20_000);
          bytes.setU64(row + 40, 20_000);
          bytes.setU64(row + 48, 32 * 1024);
          bytes.setU64(row + 56, 123_456_789);
        },
      );
      dated(w, image);
    },
  },
  {
    name: 'bitmaps',
    description:
      'Bitmaps of several granularities, enabled and disabled, with and without bits set',
    features: ['bitmaps'],
    make(w, image) {
      w.create(image, '1M', 'cluster_size=4k');
      w.img('bitmap', '--add', image, 'every-64k');
      w.img('bitmap', '--add', '-g', '4k', image, 'every-4k');
      w.io(image, 'write -P 0xf1 100k 20k', 'write -P 0xf2 900k 4k');
      w.img('bitmap', '--disable', image, 'every-4k');
      w.img('bitmap', '--add', '-g', '2M', image, 'coarse');
      w.io(image, 'write -P 0xf3 0 4k');
      w.img('bitmap', '--add', image, 'no bits');
    },
  },
  {
    name: 'bitmap-all-ones',
    description: 'A bitmap whose table says "all ones" without storing them',
    features: ['bitmaps'],
    make(w, image) {
      w.create(image, '1M', 'cluster_size=4k');
      w.img('bitmap', '--add', '-g', '4k', '--disable', image, 'full');
      w.patch(image, 'bitmap table entry 0 = 1', (bytes) => {
        const directory = Number(bytes.u64(bytes.extension(BITMAPS).offset + 8 + 16));
        bytes.setU64(Number(bytes.u64(directory)), 1);
      });
    },
  },
  {
    name: 'bitmap-in-use',
    description: 'A bitmap that was not saved: its content is not to be trusted',
    features: ['bitmaps', 'in-use'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=4k');
      w.img('bitmap', '--add', image, 'lost');
      w.io(image, 'write -P 1 0 70k');
      w.patch(image, 'flags of the bitmap |= in use', (bytes) => {
        const directory = Number(bytes.u64(bytes.extension(BITMAPS).offset + 8 + 16));
        bytes.setU32(directory + 12, bytes.u32(directory + 12) | 1);
      });
    },
  },
  {
    name: 'bitmaps-autoclear-unset',
    description: 'A bitmaps extension without its autoclear bit: someone wrote without knowing it',
    features: ['bitmaps', 'autoclear-features'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=4k');
      w.img('bitmap', '--add', image, 'stale');
      w.io(image, 'write -P 1 0 70k');
      w.patch(image, 'autoclear_features = 0', (bytes) => bytes.setU64(88, 0));
    },
  },
];
