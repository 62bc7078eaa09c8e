/** The sound images that the damaged ones are made from. */

const EPOCH = 1_704_067_200;

/** For entries that point past the end of the file. */
export const PAST_END = {
  deviation: {
    code: 'TRUNCATED',
    reason: 'QEMU reads zeroes past the end of the file; what an entry points at has to be there',
  },
};

/** For snapshots that are damaged: QEMU reads around much of it. */
export const SNAPSHOT_LENIENCY = {
  leniency: {
    codes: ['CORRUPT', 'TRUNCATED', 'TOO_LARGE', 'NOT_FOUND'],
    reason: 'a damaged snapshot may be refused where QEMU makes something of it',
  },
};

/** For damage that QEMU refuses to open an image for, though the disk can be read. */
export const MAY_BE_READ = { mayBeRead: true };

/** 4 KiB clusters: guest clusters 0 to 4 are data, 10 and 11 compressed, 20 zero, 30 data. */
export function plainBase(w, image, { options = '' } = {}) {
  w.create(image, '256k', `cluster_size=4k${options}`);
  w.io(
    image,
    'write -P 0x11 0 20k',
    'write -c -P 0x22 40k 4k',
    'write -c -P 0x23 44k 4k',
    ...(options.includes('0.10') ? [] : ['write -z -u 80k 4k']),
    'write -P 0x33 120k 4k',
  );
}

/** The same, with a snapshot that shares some of the clusters. */
export function snapshotBase(w, image, options) {
  plainBase(w, image, options);
  w.img('snapshot', '-c', 'before', image);
  w.io(image, 'write -P 0x44 4k 4k');
  w.patch(image, 'the date of the snapshot', (bytes) => bytes.dateSnapshots(EPOCH));
}

/** The same as the plain one, with two bitmaps. */
export function bitmapBase(w, image) {
  plainBase(w, image);
  w.img('bitmap', '--add', '-g', '4k', image, 'first');
  w.img('bitmap', '--add', '-g', '64k', '--disable', image, 'second');
  w.io(image, 'write -P 0x55 8k 4k');
}

/** Extended L2 entries in clusters of 16 KiB: guest clusters 0 and 1 partly written, 3 compressed. */
export function extendedBase(w, image) {
  w.create(image, '128k', 'cluster_size=16k,extended_l2=on');
  w.io(
    image,
    'write -P 0x11 0 4k',
    'write -P 0x22 18k 2k',
    'write -z -u 20k 1k',
    'write -c -P 0x33 48k 16k',
  );
}

/** A case that patches a base: `[name, description, change, extra]`. */
export function damaged(base, feature, [name, description, change, extra = {}]) {
  const { mayBeRead = false, ...sidecar } = extra;
  return {
    name,
    description,
    features: [feature],
    ...sidecar,
    make(w, image) {
      base(w, image);
      if (mayBeRead) w.noteSoundContent(image);
      w.patch(image, description, change);
    },
  };
}
