/** Clusters of every size and kind, refcounts of every width, data files. */

import { compressibleBytes } from './workshop.mjs';

const clusterSizes = [
  512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152,
];

const clusterSizeCases = clusterSizes.map((size) => ({
  name: `cluster-size-${size}`,
  description: `Clusters of ${size} bytes: data that crosses clusters, a zero cluster, holes`,
  features: ['cluster-size'],
  make(w, image) {
    w.create(image, `${40 * size}`, `cluster_size=${size}`);
    w.io(
      image,
      `write -P 0x11 0 ${Math.min(size, 4096)}`,
      `write -P 0x22 ${size + 100} ${Math.min(size, 65536)}`,
      `write -z -u ${4 * size} ${size}`,
      `write -P 0x33 ${39 * size} 512`,
    );
  },
}));

const refcountCases = [1, 2, 4, 8, 16, 32, 64].map((bits) => ({
  name: `refcount-bits-${bits}`,
  description: `Refcounts of ${bits} bits${bits > 1 ? ', some of them 2 through a snapshot' : ''}`,
  features: ['refcount-bits', ...(bits > 1 ? ['snapshots'] : [])],
  make(w, image) {
    w.create(image, '256k', `cluster_size=4k,refcount_bits=${bits}`);
    w.io(image, 'write -P 0x41 0 20k', 'write -P 0x42 100k 3k');
    if (bits === 1) return;
    w.img('snapshot', '-c', 'one', image);
    w.patch(image, 'the date of the snapshot', (bytes) => bytes.dateSnapshots(1_704_067_200));
    w.io(image, 'write -P 0x43 4k 6k');
  },
}));

const compressedCases = ['zlib', 'zstd'].flatMap((type) =>
  [512, 4096, 65536].map((size) => ({
    name: `compressed-${type}-${size}`,
    description: `Clusters of ${size} bytes compressed with ${type}, in host clusters that they share and cross`,
    features: ['compressed', type],
    make(w, image) {
      const count = size > 4096 ? 6 : 12;
      w.create(image, `${(count + 8) * size}`, `cluster_size=${size},compression_type=${type}`);
      for (let cluster = 0; cluster < count - 2; cluster++) {
        w.file('piece', compressibleBytes(size, cluster), 'text-like bytes of a fixed seed');
        w.io(image, `write -c -s piece ${cluster * size} ${size}`);
      }
      w.io(
        image,
        `write -c -P 0x5a ${count * size} ${size}`,
        `write -P 0x61 ${(count + 2) * size} ${size}`,
        // Over a compressed cluster: it is unpacked, changed and stored plain.
        `write -P 0x62 ${size} 512`,
      );
    },
  })),
);

const extendedCases = [16384, 65536].map((size) => ({
  name: `extended-l2-${size}`,
  description: `Extended L2 entries with clusters of ${size} bytes: subclusters written, zeroed, discarded and left out`,
  features: ['extended-l2', 'zero', 'compressed'],
  make(w, image) {
    const sub = size / 32;
    w.create(image, `${24 * size}`, `cluster_size=${size},extended_l2=on`);
    w.io(
      image,
      `write -P 0x31 0 ${sub}`,
      `write -P 0x32 ${5 * sub} ${3 * sub}`,
      `write -P 0x33 ${31 * sub} ${2 * sub}`,
      `write -z -u ${6 * sub} ${sub}`,
      `write -P 0x34 ${3 * size} ${2 * size}`,
      `write -z ${3 * size + 4 * sub} ${4 * sub}`,
      `discard ${4 * size} ${8 * sub}`,
      `write -z -u ${8 * size} ${size}`,
      `write -z ${10 * size + 7 * sub} ${2 * sub}`,
      `write -c -P 0x35 ${12 * size} ${size}`,
    );
  },
}));

export const layoutCases = [
  ...clusterSizeCases,
  ...refcountCases,
  ...compressedCases,
  ...extendedCases,
  ...['0.10', '1.1'].map((compat) => ({
    name: compat === '1.1' ? 'version-3' : 'version-2',
    description: `compat=${compat}, with data and holes`,
    features: [compat === '1.1' ? 'version-3' : 'version-2'],
    make(w, image) {
      w.create(image, '1M', `compat=${compat},cluster_size=4k`);
      w.io(image, 'write -P 1 0 8k', 'write -P 2 500k 10k', 'write -c -P 3 600k 4k');
    },
  })),
  {
    name: 'empty',
    description: 'A disk to which nothing was written',
    features: ['unallocated'],
    make: (w, image) => w.create(image, '10M', 'cluster_size=4k') && undefined,
  },
  {
    name: 'size-zero',
    description: 'A disk of no bytes',
    features: ['virtual-size'],
    make: (w, image) => w.create(image, '0', 'cluster_size=4k') && undefined,
  },
  {
    name: 'zero-clusters',
    description: 'Zero clusters without and with host space, and discarded ones',
    features: ['zero'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=4k');
      w.io(
        image,
        'write -P 7 0 64k',
        'write -z 4k 8k',
        'write -z -u 16k 8k',
        'discard 32k 4k',
        'write -z -u 128k 16k',
        'write -P 8 62k 4k',
      );
    },
  },
  {
    name: 'preallocation-metadata',
    description: 'All L2 tables and clusters allocated, none written',
    features: ['preallocation'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=4k,preallocation=metadata');
      w.io(image, 'write -P 9 10k 5k');
    },
  },
  {
    name: 'extended-l2-preallocation',
    description: 'Subclusters of clusters that are allocated but not written',
    features: ['extended-l2', 'preallocation'],
    make(w, image) {
      w.create(image, '160k', 'cluster_size=16k,extended_l2=on,preallocation=metadata');
      w.io(image, 'write -P 9 10k 5k', 'write -P 10 130k 1k');
    },
  },
  {
    name: 'data-file',
    description: 'Guest data in an external file, laid out by the L2 tables',
    features: ['data-file'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=4k,data_file=data-file.data');
      w.io(image, 'write -P 1 100k 8k', 'write -P 2 0 6k', 'write -z -u 20k 4k', 'discard 100k 4k');
      return ['data-file.data'];
    },
  },
  {
    name: 'data-file-raw',
    description: 'Guest data in an external raw file, each byte at its guest offset',
    features: ['data-file', 'data-file-raw'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=4k,data_file=data-file-raw.raw,data_file_raw=on');
      w.io(image, 'write -P 1 100k 8k', 'write -P 2 0 6k', 'write -z 20k 4k');
      return ['data-file-raw.raw'];
    },
  },
  {
    name: 'odd-size',
    description: 'A disk whose last cluster is not whole',
    features: ['virtual-size'],
    make(w, image) {
      w.create(image, '100864', 'cluster_size=4k');
      w.io(image, 'write -P 4 96k 2560', 'write -P 5 50000 700');
    },
  },
  {
    name: 'odd-size-bytes',
    description: 'A header whose disk size is not a multiple of 512; QEMU rounds it down',
    features: ['virtual-size'],
    make(w, image) {
      w.create(image, '100864', 'cluster_size=4k');
      w.io(image, 'write -P 4 96k 2560');
      w.patch(image, 'size = 100700', (bytes) => bytes.setU64(24, 100_700));
    },
  },
  {
    name: 'size-64-tib',
    description: 'A disk of 64 TiB with data at its start, middle and end',
    features: ['virtual-size', 'large'],
    make(w, image) {
      w.create(image, '64T', 'cluster_size=64k');
      w.io(image, 'write -P 1 0 4k', 'write -P 2 32T 4k', 'write -P 3 70368744173568 4k');
    },
  },
  {
    name: 'size-2-pib',
    description: 'A disk of 2 PiB in clusters of 2 MiB',
    features: ['virtual-size', 'large'],
    make(w, image) {
      w.create(image, '2P', 'cluster_size=2M');
      w.io(image, 'write -P 1 0 4k', 'write -P 2 1P 4k', 'write -P 3 2251799813681152 4k');
    },
  },
  {
    name: 'l1-larger-than-needed',
    description: 'A disk that was shrunk: its L1 table kept its entries',
    features: ['resize'],
    make(w, image) {
      w.create(image, '256k', 'cluster_size=512');
      w.io(image, 'write -P 6 0 10k', 'write -P 7 200k 10k');
      w.img('resize', '-q', '--shrink', image, '100k');
    },
  },
  {
    name: 'encrypted-aes',
    description: 'Legacy AES encryption, which needs a secret',
    features: ['encryption'],
    make(w, image) {
      const secret = ['--object', 'secret,id=key,data=secret'];
      w.img(
        'create',
        '-q',
        '-f',
        'qcow2',
        ...secret,
        '-o',
        'cluster_size=4k,encrypt.format=aes,encrypt.key-secret=key',
        image,
        '64k',
      );
    },
  },
];
